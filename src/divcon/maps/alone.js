
// The map that stands alone: its data is in the page.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { labels, images } = data, count = labels.of.length;
const chosen = new Set();
const scatters = [];

function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function light(pointed = -1) {
  const wanted = pointed >= 0 ? [pointed] : [...chosen];
  for (const { scatter, x, y } of scatters) {
    if (!wanted.length) { scatter.light(null, [], pointed < 0); continue; }
    const lit = new Uint8Array(count), names = [];
    for (const label of wanted) {
      const at = [];
      for (let i = 0; i < count; i++) if (labels.of[i] === label) { lit[i] = 1; at.push(i); }
      const mid = (axis) => at.map((i) => axis[i]).sort((a, b) => a - b)[at.length >> 1];
      if (names.length < 12) names.push({ text: labels.names[label], x: mid(x), y: mid(y) });
    }
    scatter.light(lit, names, pointed < 0);
  }
}

function toggle(label) {
  if (label < 0) return;
  if (!chosen.delete(label)) chosen.add(label);
  $("map-chosen").replaceChildren(...[...chosen].map((one) => {
    const button = node("button", { type: "button", ariaLabel: `Remove ${labels.names[one]}` }, `${labels.names[one]} ✕`);
    button.addEventListener("click", () => toggle(one));
    return node("li", {}, button);
  }));
  light();
}

for (const panel of data.panels) {
  const chart = node("div", { className: "chart" }), shown = node("div", { className: "shown", hidden: true });
  $("panels").append(node("section", {}, node("h2", {}, panel.title), node("p", { className: "dim" },
    [panel.about, panel.note].filter(Boolean).join(" ")), chart));
  const x = Float32Array.from(panel.x), y = Float32Array.from(panel.y);
  const view = { zoom: 1, x: 0, y: 0, thumbs: true };
  let pointed = -1;
  const scatter = createScatter(chart, {
    x, y, view, label: `Map of ${count} items: ${panel.title}`, describedBy: "map-help",
    image: (i) => images[i] ?? null,
    onChoose: (i, spoken) => {
      const label = i < 0 ? -1 : labels.of[i];
      if (label !== pointed) { pointed = label; light(label); }
      shown.hidden = i < 0;
      if (i < 0) return;
      const name = label < 0 ? "no label" : labels.names[label];
      const picture = images[i] ? [node("img", { src: images[i], alt: "" })] : [];
      shown.replaceChildren(node("div", { className: "item" }, ...picture, node("span", { className: "label" }, name),
        node("span", { className: "path" }, data.paths[i])));
      const [px, py] = scatter.place(i);
      shown.style.left = `${Math.max(0, px + 168 > chart.clientWidth ? px - 164 : px + 14)}px`;
      shown.style.top = `${Math.max(0, Math.min(py + 14, chart.clientHeight - 215))}px`;
      if (spoken) $("status").textContent = `Item: ${name}`;
    },
    onOpen: (i) => toggle(labels.of[i]),
  });
  chart.append(shown);
  scatter.canvas.removeAttribute("id");
  scatter.colour(Int32Array.from(data.of), data.colours.map(rgb));
  scatters.push({ scatter, view, x, y });
}

$("legend").replaceChildren(...data.legend.map(([hue, words]) => {
  const swatch = node("span", { className: "swatch" });
  swatch.style.background = hue;
  return node("li", {}, swatch, words);
}), ...(data.more ? [node("li", { className: "dim" }, data.more)] : []));

const folded = labels.names.map((name) => name.toLocaleLowerCase());
$("map-find").addEventListener("input", () => {
  const wanted = $("map-find").value.trim().toLocaleLowerCase();
  const matching = labels.names.filter((name, i) => wanted && folded[i].includes(wanted)).slice(0, 50);
  $("map-labels").replaceChildren(...matching.map((name) => node("option", { value: name })));
});
$("finder").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("map-find").value.trim().toLocaleLowerCase();
  const exact = folded.indexOf(wanted), label = exact >= 0 ? exact : folded.findIndex((name) => name.includes(wanted));
  if (!wanted) return;
  if (label < 0) { $("status").textContent = `No label contains “${$("map-find").value.trim()}”.`; return; }
  if (!chosen.has(label)) toggle(label);
  $("map-find").value = "";
  const items = labels.of.filter((one) => one === label).length;
  $("status").textContent = `${labels.names[label]}: ${items.toLocaleString()} items lit up.`;
});
$("map-thumbs").addEventListener("change", () => {
  for (const { scatter, view } of scatters) { view.thumbs = $("map-thumbs").checked; scatter.thumbnails(); }
});
$("thumbs-off").hidden = !Object.keys(images).length;
$("all").addEventListener("click", () => scatters.forEach(({ scatter }) => scatter.reset()));
