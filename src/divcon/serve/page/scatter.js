// A picture of many points that is moved, zoomed and pointed at; with thumbnails where there is room. It knows nothing of
// the server: the page and the maps that stand alone both draw with it.

const MANY = 3_000; // points that are drawn pixel by pixel
const MARGIN = 16;
const THUMBS = 200;
const LOADED = 800; // thumbnails in memory

/** The red, green and blue of `#rrggbb`. */
export const rgb = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));

/** Colours told apart: ten hues of the style sheet, then lighter and darker ones; they repeat after thirty. */
export function palette(count) {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => rgb(style.getPropertyValue(name).trim());
  const mixed = (a, b, share) => a.map((value, i) => Math.round(value * (1 - share) + b[i] * share));
  const ink = of("--ink"), paper = of("--paper");
  return Array.from({ length: count }, (_, i) => {
    const own = of(`--c${i % 10}`), turn = Math.floor(i / 10) % 3;
    return turn === 0 ? own : turn === 1 ? mixed(own, ink, 0.4) : mixed(own, paper, 0.45);
  });
}

/** Colours of a scale from its least to its largest value. */
export function scale(count) {
  const style = getComputedStyle(document.documentElement);
  const [low, mid, high] = ["--c0", "--c4", "--c1"].map((name) => rgb(style.getPropertyValue(name).trim()));
  return Array.from({ length: count }, (_, i) => {
    const at = (2 * i) / Math.max(1, count - 1), [a, b] = at < 1 ? [low, mid] : [mid, high], share = at < 1 ? at : at - 1;
    return a.map((value, channel) => Math.round(value * (1 - share) + b[channel] * share));
  });
}

/**
 * Draw points in `host`.
 *
 * @param {object} given
 * @param {Float32Array} given.x, given.y  from -1 to 1
 * @param {{zoom: number, x: number, y: number, thumbs: boolean}} given.view  the part that is shown; changed in place
 * @param {string} given.label  what a screen reader says of the picture
 * @param {(i: number) => string | null} given.image  the address of a point's thumbnail
 * @param {(i: number, spoken: boolean) => void} given.onChoose  a point is pointed at; -1: none
 * @param {(i: number) => void} given.onOpen  a point is clicked
 */
export function createScatter(host, { x, y, view, label, describedBy, image, onChoose, onOpen }) {
  const count = x.length;
  const ground = document.createElement("canvas");
  const canvas = document.createElement("canvas");
  ground.className = "ground";
  ground.setAttribute("aria-hidden", "true");
  canvas.id = "map-canvas";
  canvas.className = "map-canvas";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", label);
  if (describedBy) canvas.setAttribute("aria-describedby", describedBy);
  host.replaceChildren(ground, canvas);

  let of = new Int32Array(count).fill(-1), colours = [], lit = null, kept = null, names = [];
  let at = -1, thumbs = [], size = 48, frame = 0, idle = 0, gone = false;
  const images = new Map();
  const priority = new Uint32Array(count).map((_, i) => Math.imul(i + 1, 2654435761) >>> 0);
  const byX = new Uint32Array(count).map((_, i) => i).sort((a, b) => x[a] - x[b] || y[b] - y[a]);

  const side = () => (Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - MARGIN) * view.zoom;
  const place = (i, s = side()) =>
    [canvas.clientWidth / 2 + (x[i] - view.x) * s, canvas.clientHeight / 2 - (y[i] - view.y) * s];
  const radius = () => Math.min(7, Math.max(1.5, 110 / Math.sqrt(count)) * Math.sqrt(view.zoom));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const isLit = (i) => lit === null || lit[i] === 1;

  function later() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (!gone && canvas.isConnected && canvas.clientWidth) paint();
    });
  }

  function moved() {
    clearTimeout(idle);
    idle = setTimeout(() => { pick(); later(); }, count > MANY ? 120 : 0);
    later();
  }

  // Thumbnails: at most one in a cell of a grid that moves with the points, and none over another.

  function pick() {
    thumbs = [];
    if (!view.thumbs || gone || !canvas.clientWidth) return;
    const s = side(), w = canvas.clientWidth, h = canvas.clientHeight, inside = [];
    for (let i = 0; i < count; i++) {
      const px = w / 2 + (x[i] - view.x) * s, py = h / 2 - (y[i] - view.y) * s;
      if (px > -20 && py > -20 && px < w + 20 && py < h + 20 && (kept === null || kept[i])) inside.push(i);
    }
    if (view.zoom < 3 && inside.length > 250) return;
    size = inside.length < 60 && w > 500 ? 72 : w > 500 ? 52 : 40;
    const cells = new Map();
    for (const i of inside) {
      const cell = `${Math.floor((x[i] * s) / size)} ${Math.floor((y[i] * s) / size)}`, other = cells.get(cell);
      if (other === undefined || priority[i] < priority[other]) cells.set(cell, i);
    }
    const placed = [];
    for (const i of [...cells.values()].sort((a, b) => priority[a] - priority[b])) {
      const px = x[i] * s, py = y[i] * s;
      if (placed.length < THUMBS && placed.every((o) => Math.abs(o.px - px) >= size || Math.abs(o.py - py) >= size)) {
        placed.push({ i, px, py });
      }
    }
    thumbs = placed.map((o) => o.i).filter((i) => picture(i) !== null);
  }

  function picture(i) {
    if (images.has(i)) return images.get(i);
    const address = image(i);
    if (address === null) return null;
    const node = new Image();
    images.set(i, node);
    node.onload = later;
    node.onerror = () => { images.set(i, null); thumbs = thumbs.filter((o) => o !== i); later(); };
    node.src = address;
    if (images.size > LOADED) images.delete(images.keys().next().value);
    return node;
  }

  // Points, on the lower canvas.

  function paintPoints() {
    const s = side(), r = radius(), w = canvas.clientWidth, h = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    ground.width = w * ratio;
    ground.height = h * ratio;
    const pen = ground.getContext("2d");
    const none = rgb(css("--dim"));
    if (count > MANY) { raster(pen, s, r, none, ratio); return; }
    pen.scale(ratio, ratio);
    for (const bright of lit === null ? [true] : [false, true]) {
      for (let i = 0; i < count; i++) {
        if (isLit(i) !== bright) continue;
        pen.globalAlpha = !bright ? 0.16 : of[i] < 0 ? 0.5 : 0.85;
        pen.fillStyle = `rgb(${!bright || of[i] < 0 ? none : colours[of[i]]})`;
        pen.beginPath();
        pen.arc(...place(i, s), lit !== null && bright ? Math.max(4, r) : r, 0, 2 * Math.PI);
        pen.fill();
      }
    }
  }

  /** Many points, pixel by pixel, which takes a tenth of the time of shapes. */
  function raster(pen, s, r, none, ratio) {
    const wide = ground.width, high = ground.height, sheet = pen.createImageData(wide, high);
    const pixels = new Uint32Array(sheet.data.buffer), small = Math.max(1, Math.round(r * ratio));
    const disc = (reach) => {
      const offsets = [];
      for (let dy = -reach; dy <= reach; dy++) {
        for (let dx = -reach; dx <= reach; dx++) if (dx * dx + dy * dy <= reach * reach) offsets.push(dy * wide + dx);
      }
      return offsets;
    };
    const solid = ([red, green, blue], alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    const dimmed = solid(none, 40), missing = solid(none, 128), own = colours.map((one) => solid(one, 217));
    const cx = wide / 2 - view.x * s * ratio, cy = high / 2 + view.y * s * ratio, unit = s * ratio;
    for (const bright of lit === null ? [true] : [false, true]) {
      const reach = lit !== null && bright ? Math.max(Math.round(3 * ratio), small) : small, offsets = disc(reach);
      for (let i = 0; i < count; i++) {
        if ((lit === null || lit[i] === 1) !== bright) continue;
        const px = Math.round(cx + x[i] * unit), py = Math.round(cy - y[i] * unit);
        if (px < reach || py < reach || px >= wide - reach || py >= high - reach) continue;
        const ink = !bright ? dimmed : of[i] < 0 ? missing : own[of[i]], start = py * wide + px;
        for (const offset of offsets) pixels[start + offset] = ink;
      }
    }
    pen.putImageData(sheet, 0, 0);
  }

  function inside(i) {
    const [px, py] = place(i);
    return px >= 0 && py >= 0 && px <= canvas.clientWidth && py <= canvas.clientHeight;
  }

  function paint() {
    paintPoints();
    const ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight, s = side();
    canvas.width = w * ratio;
    canvas.height = h * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.lineWidth = 2;
    for (const i of thumbs) {
      const node = images.get(i);
      if (!node?.complete || !node.naturalWidth) continue;
      const [px, py] = place(i, s), share = Math.min((size - 6) / node.naturalWidth, (size - 6) / node.naturalHeight);
      const wide = node.naturalWidth * share, high = node.naturalHeight * share;
      pen.globalAlpha = 1;
      pen.fillStyle = isLit(i) ? "#ffffff" : css("--raised");
      pen.fillRect(px - wide / 2, py - high / 2, wide, high);
      pen.globalAlpha = isLit(i) ? 1 : 0.25;
      pen.drawImage(node, px - wide / 2, py - high / 2, wide, high);
      pen.strokeStyle = of[i] >= 0 ? `rgb(${colours[of[i]]})` : css("--dim");
      pen.strokeRect(px - wide / 2 - 1, py - high / 2 - 1, wide + 2, high + 2);
    }
    pen.globalAlpha = 1;
    pen.font = `600 13px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "center";
    pen.lineJoin = "round";
    for (const { text, x: nx, y: ny } of names) {
      const px = Math.max(40, Math.min(w - 40, w / 2 + (nx - view.x) * s));
      const py = Math.max(16, Math.min(h - 8, h / 2 - (ny - view.y) * s - (thumbs.length ? size / 2 + 6 : 10)));
      pen.lineWidth = 4;
      pen.strokeStyle = css("--paper");
      pen.strokeText(text, px, py);
      pen.fillStyle = css("--ink");
      pen.fillText(text, px, py);
    }
    if (at < 0) return;
    const [px, py] = place(at, s);
    pen.lineWidth = 3;
    pen.strokeStyle = css("--ink");
    pen.beginPath();
    pen.arc(px, py, radius() + 4, 0, 2 * Math.PI);
    pen.stroke();
  }

  function choose(i, spoken) {
    at = i;
    onChoose(i, spoken);
    later();
  }

  function nearest(px, py) {
    const s = side(), w = canvas.clientWidth / 2, h = canvas.clientHeight / 2;
    const over = thumbs.findLast((i) => {
      const [tx, ty] = place(i, s);
      return Math.abs(tx - px) <= size / 2 && Math.abs(ty - py) <= size / 2;
    });
    if (over !== undefined) return over;
    let best = -1, least = 14 ** 2;
    for (let i = 0; i < count; i++) {
      const dx = w + (x[i] - view.x) * s - px, dy = h - (y[i] - view.y) * s - py, far = dx * dx + dy * dy;
      if (far < least) [best, least] = [i, far];
    }
    return best;
  }

  function zoom(factor, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
    const before = side();
    view.zoom = Math.min(500, Math.max(0.5, view.zoom * factor));
    const change = 1 / before - 1 / side();
    view.x += (px - canvas.clientWidth / 2) * change;
    view.y -= (py - canvas.clientHeight / 2) * change;
    choose(at, false);
    moved();
  }

  function reset() {
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    choose(-1, false);
    moved();
  }

  /** Show the part that has these points. */
  function show(points) {
    if (!points.length) return;
    let [left, right, low, high] = [1, -1, 1, -1];
    for (const i of points) [left, right, low, high] = [Math.min(left, x[i]), Math.max(right, x[i]), Math.min(low, y[i]), Math.max(high, y[i])];
    view.zoom = Math.min(12, Math.max(1, 1.4 / Math.max(right - left, high - low, 0.01)));
    Object.assign(view, { x: (left + right) / 2, y: (low + high) / 2 });
    choose(-1, false);
    moved();
  }

  function step(by) {
    const now = at < 0 ? (by > 0 ? -1 : 0) : byX.indexOf(at);
    for (let n = 1; n <= count; n++) {
      const i = byX[(now + by * n + 2 * count) % count];
      if (inside(i) && (kept === null || kept[i])) { choose(i, true); return; }
    }
  }

  canvas.addEventListener("keydown", (event) => {
    const move = 0.15 / view.zoom;
    const acts = {
      ArrowLeft: () => { view.x -= move; }, ArrowRight: () => { view.x += move; }, ArrowUp: () => { view.y += move; },
      ArrowDown: () => { view.y -= move; }, "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
      0: reset, n: () => step(1), p: () => step(-1), Enter: () => { if (at >= 0) onOpen(at); }, Escape: () => choose(-1, false),
    };
    const act = acts[event.key] ?? acts[event.key.toLowerCase()];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    if (event.key.startsWith("Arrow")) { choose(at, false); moved(); }
  });

  const within = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY * (event.deltaMode ? 30 : 1))) / 500), ...within(event));
  }, { passive: false });

  const fingers = new Map();
  let dragged = false, start = null;
  canvas.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, within(event));
    if (fingers.size === 1) [dragged, start] = [false, within(event)];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [px, py] = within(event), before = fingers.get(event.pointerId);
    if (!before) {
      const pointed = nearest(px, py);
      if (pointed !== at) choose(pointed, false);
      return;
    }
    if (!dragged && fingers.size === 1 && Math.hypot(px - start[0], py - start[1]) < 4) return;
    dragged = true;
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    fingers.set(event.pointerId, [px, py]);
    if (at >= 0) choose(-1, false);
    if (other) {
      const apart = ([ax, ay]) => Math.max(10, Math.hypot(ax - other[0], ay - other[1]));
      zoom(apart([px, py]) / apart(before), (px + other[0]) / 2, (py + other[1]) / 2);
      return;
    }
    view.x -= (px - before[0]) / side();
    view.y += (py - before[1]) / side();
    moved();
  });
  const lifted = (event) => {
    const clicked = fingers.delete(event.pointerId) && !dragged && event.type === "pointerup";
    if (!clicked) return;
    choose(nearest(...within(event)), false);
    if (at >= 0) onOpen(at);
  };
  canvas.addEventListener("pointerup", lifted);
  canvas.addEventListener("pointercancel", lifted);
  canvas.addEventListener("pointerleave", () => {
    if (!fingers.size && document.activeElement !== canvas) choose(-1, false);
  });

  const watch = new ResizeObserver(() => { if (canvas.isConnected) { choose(at, false); moved(); } });
  watch.observe(canvas);

  return {
    canvas, place, inside, zoom, reset, show, choose, get at() { return at; },
    /** Colour the points: each by `colours[of[i]]`, or not at all where `of[i]` is -1. */
    colour(newOf, newColours) { [of, colours] = [newOf, newColours]; later(); },
    /** Light up the points where `newLit` is 1 and dim the rest; null: all. `newNames` are written at their places.
     * Where it is to `stay`, thumbnails are of these points alone. */
    light(newLit, newNames = [], stay = true) {
      [lit, names] = [newLit, newNames];
      if (stay) { kept = newLit; moved(); }
      later();
    },
    thumbnails: () => moved(),
    end() {
      gone = true;
      watch.disconnect();
      clearTimeout(idle);
    },
  };
}
