"""The names that people have for pretrained image models, as timm's: those of the Hugging Face hub, open_clip and
``torch.hub``. Without PyTorch.

Where a model was trained with QuickGELU (OpenAI's CLIP, MetaCLIP), its name here is timm's with ``quickgelu``, which
computes what the original does.
"""

from __future__ import annotations

import os
import re

HUB, FOLDER, OPEN_CLIP = "hf-hub:", "local-dir:", "open_clip:"
SOURCES = (HUB, FOLDER)
"""Prefixes of models that are no names of timm's: a repository of the hub that timm wrote, and a folder like one."""

_CLIP = {
    "ViT-B-32": ("vit_base_patch32_clip", 224),
    "ViT-B-32-256": ("vit_base_patch32_clip", 256),
    "ViT-B-16": ("vit_base_patch16_clip", 224),
    "ViT-B-16-plus-240": ("vit_base_patch16_plus_clip", 240),
    "ViT-L-14": ("vit_large_patch14_clip", 224),
    "ViT-L-14-336": ("vit_large_patch14_clip", 336),
    "ViT-H-14": ("vit_huge_patch14_clip", 224),
    "ViT-H-14-378": ("vit_huge_patch14_clip", 378),
    "ViT-g-14": ("vit_giant_patch14_clip", 224),
    "ViT-bigG-14": ("vit_gigantic_patch14_clip", 224),
}
_CLIP_TAGS = {
    "openai": "openai",
    "metaclip_400m": "metaclip_400m",
    "metaclip_fullcc": "metaclip_2pt5b",
    "laion400m_e32": "laion400m_e32",
    "datacomp_xl_s13b_b90k": "datacompxl",
    "datacomp_s34b_b86k": "datacompxl",
    "laion2b_s34b_b79k": "laion2b",
    "laion2b_s34b_b88k": "laion2b",
    "laion2b_s32b_b82k": "laion2b",
    "laion2b_s32b_b79k": "laion2b",
    "laion2b_s12b_b42k": "laion2b",
    "laion2b_s39b_b160k": "laion2b",
    "metaclip_altogether": "metaclip_altogether",
    "dfn2b": "dfn2b",
    "dfn2b_s39b": "dfn2b_s39b",
    "dfn5b": "dfn5b",
}
_QUICKGELU = ("openai", "metaclip_400m", "metaclip_fullcc", "dfn2b", "dfn5b")


def _open_clip() -> dict[str, str]:
    """timm's name of each ``MODEL/PRETRAINED`` of open_clip whose image tower timm has with the same weights."""
    names: dict[str, str] = {}
    pretrained = {
        "ViT-B-32": "openai metaclip_400m metaclip_fullcc laion400m_e32 laion2b_s34b_b79k datacomp_xl_s13b_b90k",
        "ViT-B-32-256": "datacomp_s34b_b86k",
        "ViT-B-16": "openai metaclip_400m metaclip_fullcc laion400m_e32 laion2b_s34b_b88k datacomp_xl_s13b_b90k",
        "ViT-B-16-plus-240": "laion400m_e32",
        "ViT-L-14": "openai metaclip_400m metaclip_fullcc laion400m_e32 laion2b_s32b_b82k datacomp_xl_s13b_b90k "
        "dfn2b dfn2b_s39b",
        "ViT-L-14-336": "openai",
        "ViT-H-14": "metaclip_fullcc metaclip_altogether dfn5b laion2b_s32b_b79k",
        "ViT-H-14-378": "dfn5b",
        "ViT-g-14": "laion2b_s12b_b42k",
        "ViT-bigG-14": "metaclip_fullcc laion2b_s39b_b160k",
    }
    for model, tags in pretrained.items():
        stem, size = _CLIP[model]
        for tag in tags.split():
            quick = tag in _QUICKGELU or (model, tag) == ("ViT-B-32", "laion400m_e32")
            timm = f"{stem}{'_quickgelu' if quick else ''}_{size}.{_CLIP_TAGS[tag]}"
            names[f"{model}/{tag}"] = timm
            if quick:
                names[f"{model}-quickgelu/{tag}"] = timm
    for model, tags in {"RN50": "openai yfcc15m cc12m", "RN101": "openai yfcc15m", "RN50x4": "openai"}.items():
        for tag in tags.split():
            timm = f"{model.replace('RN', 'resnet')}_clip.{tag}"
            names[f"{model}/{tag}"] = names[f"{model}-quickgelu/{tag}"] = timm
    for model in ("RN50x16", "RN50x64"):
        timm = f"{model.replace('RN', 'resnet')}_clip.openai"
        names[f"{model}/openai"] = names[f"{model}-quickgelu/openai"] = timm
    names |= {
        "convnext_base_w/laion2b_s13b_b82k": "convnext_base.clip_laion2b",
        "convnext_base_w/laion2b_s13b_b82k_augreg": "convnext_base.clip_laion2b_augreg",
        "convnext_base_w/laion_aesthetic_s13b_b82k": "convnext_base.clip_laiona",
        "convnext_base_w_320/laion_aesthetic_s13b_b82k": "convnext_base.clip_laiona_320",
        "convnext_base_w_320/laion_aesthetic_s13b_b82k_augreg": "convnext_base.clip_laiona_augreg_320",
        "convnext_large_d/laion2b_s26b_b102k_augreg": "convnext_large_mlp.clip_laion2b_augreg",
        "convnext_large_d_320/laion2b_s29b_b131k_ft": "convnext_large_mlp.clip_laion2b_ft_320",
        "convnext_large_d_320/laion2b_s29b_b131k_ft_soup": "convnext_large_mlp.clip_laion2b_ft_soup_320",
        "convnext_xxlarge/laion2b_s34b_b82k_augreg_rewind": "convnext_xxlarge.clip_laion2b_rewind",
        "convnext_xxlarge/laion2b_s34b_b82k_augreg_soup": "convnext_xxlarge.clip_laion2b_soup",
        "EVA01-g-14/laion400m_s11b_b41k": "eva_giant_patch14_clip_224.laion400m",
        "EVA01-g-14-plus/merged2b_s11b_b114k": "eva_giant_patch14_clip_224.merged2b",
        "EVA02-B-16/merged2b_s8b_b131k": "eva02_base_patch16_clip_224.merged2b",
        "EVA02-L-14/merged2b_s4b_b131k": "eva02_large_patch14_clip_224.merged2b",
        "EVA02-L-14-336/merged2b_s6b_b61k": "eva02_large_patch14_clip_336.merged2b",
        "EVA02-E-14/laion2b_s4b_b115k": "eva02_enormous_patch14_clip_224.laion2b",
        "EVA02-E-14-plus/laion2b_s9b_b144k": "eva02_enormous_patch14_clip_224.laion2b_plus",
        "MobileCLIP-S1/datacompdr": "fastvit_mci1.apple_mclip",
        "MobileCLIP-S2/datacompdr": "fastvit_mci2.apple_mclip",
        "MobileCLIP-B/datacompdr": "vit_base_mci_224.apple_mclip",
        "MobileCLIP-B/datacompdr_lt": "vit_base_mci_224.apple_mclip_lt",
        "MobileCLIP2-S0/dfndr2b": "fastvit_mci0.apple_mclip2_dfndr2b",
        "MobileCLIP2-S2/dfndr2b": "fastvit_mci2.apple_mclip2_dfndr2b",
        "MobileCLIP2-S3/dfndr2b": "fastvit_mci3.apple_mclip2_dfndr2b",
        "MobileCLIP2-S4/dfndr2b": "fastvit_mci4.apple_mclip2_dfndr2b",
        "MobileCLIP2-B/dfndr2b": "vit_base_mci_224.apple_mclip2_dfndr2b",
        "ViTamin-S/datacomp1b": "vitamin_small_224.datacomp1b_clip",
        "ViTamin-S-LTT/datacomp1b": "vitamin_small_224.datacomp1b_clip_ltt",
        "ViTamin-B/datacomp1b": "vitamin_base_224.datacomp1b_clip",
        "ViTamin-B-LTT/datacomp1b": "vitamin_base_224.datacomp1b_clip_ltt",
        "ViTamin-L/datacomp1b": "vitamin_large_224.datacomp1b_clip",
        "ViTamin-L2/datacomp1b": "vitamin_large2_224.datacomp1b_clip",
        "PE-Core-T-16-384/meta": "vit_pe_core_tiny_patch16_384.fb",
        "PE-Core-S-16-384/meta": "vit_pe_core_small_patch16_384.fb",
        "PE-Core-B-16/meta": "vit_pe_core_base_patch16_224.fb",
        "PE-Core-L-14-336/meta": "vit_pe_core_large_patch14_336.fb",
        "PE-Core-bigG-14-448/meta": "vit_pe_core_gigantic_patch14_448.fb",
    }
    for size in ("256", "336", "384"):
        names[f"ViTamin-L-{size}/datacomp1b"] = f"vitamin_large_{size}.datacomp1b_clip"
        names[f"ViTamin-L2-{size}/datacomp1b"] = f"vitamin_large2_{size}.datacomp1b_clip"
        names[f"ViTamin-XL-{size}/datacomp1b"] = f"vitamin_xlarge_{size}.datacomp1b_clip"
    siglip = {
        "B-16-SigLIP": "base_patch16_siglip_224.webli",
        **{f"B-16-SigLIP-{size}": f"base_patch16_siglip_{size}.webli" for size in (256, 384, 512)},
        "B-16-SigLIP-i18n-256": "base_patch16_siglip_256.webli_i18n",
        **{f"L-16-SigLIP-{size}": f"large_patch16_siglip_{size}.webli" for size in (256, 384)},
        "SO400M-14-SigLIP": "so400m_patch14_siglip_224.webli",
        "SO400M-16-SigLIP-i18n-256": "so400m_patch16_siglip_256.webli_i18n",
        **{f"SO400M-14-SigLIP-{size}": f"so400m_patch14_siglip_{size}.webli" for size in (378, 384)},
        "B-32-SigLIP2-256": "base_patch32_siglip_256.v2_webli",
        "B-16-SigLIP2": "base_patch16_siglip_224.v2_webli",
        **{f"B-16-SigLIP2-{size}": f"base_patch16_siglip_{size}.v2_webli" for size in (256, 384, 512)},
        **{f"L-16-SigLIP2-{size}": f"large_patch16_siglip_{size}.v2_webli" for size in (256, 384, 512)},
        "SO400M-14-SigLIP2": "so400m_patch14_siglip_224.v2_webli",
        "SO400M-14-SigLIP2-378": "so400m_patch14_siglip_378.v2_webli",
        **{f"SO400M-16-SigLIP2-{size}": f"so400m_patch16_siglip_{size}.v2_webli" for size in (256, 384, 512)},
        **{f"gopt-16-SigLIP2-{size}": f"giantopt_patch16_siglip_{size}.v2_webli" for size in (256, 384)},
    }
    return names | {f"ViT-{model}/webli": f"vit_{timm}" for model, timm in siglip.items()}


OPEN_CLIP_NAMES = _open_clip()

_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant", "h": "huge"}
_DINOV3 = {**_SIZES, "splus": "small_plus", "hplus": "huge_plus"}
_REPOSITORIES = {
    "openai/clip-vit-base-patch32": "ViT-B-32/openai",
    "openai/clip-vit-base-patch16": "ViT-B-16/openai",
    "openai/clip-vit-large-patch14": "ViT-L-14/openai",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336/openai",
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": "ViT-B-32/laion2b_s34b_b79k",
    "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K": "ViT-B-32/datacomp_xl_s13b_b90k",
    "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K": "ViT-B-32-256/datacomp_s34b_b86k",
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": "ViT-B-16/laion2b_s34b_b88k",
    "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K": "ViT-B-16/datacomp_xl_s13b_b90k",
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": "ViT-L-14/laion2b_s32b_b82k",
    "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K": "ViT-L-14/datacomp_xl_s13b_b90k",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "ViT-H-14/laion2b_s32b_b79k",
    "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": "ViT-g-14/laion2b_s12b_b42k",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": "ViT-bigG-14/laion2b_s39b_b160k",
    "apple/MobileCLIP-S1-OpenCLIP": "MobileCLIP-S1/datacompdr",
    "apple/MobileCLIP-S2-OpenCLIP": "MobileCLIP-S2/datacompdr",
    "apple/MobileCLIP-B-OpenCLIP": "MobileCLIP-B/datacompdr",
    "apple/MobileCLIP-B-LT-OpenCLIP": "MobileCLIP-B/datacompdr_lt",
}
"""Repositories of the hub that hold CLIP models for other libraries, as open_clip names them."""


def canonical(name: str) -> str:
    """timm's own name of a model, where it has one for what others call so; else the name as it is.

    ``timm/resnet18.a1_in1k`` and ``hf-hub:timm/resnet18.a1_in1k`` are ``resnet18.a1_in1k``; ``facebook/dinov2-base``,
    ``dinov2_vitb14`` are ``vit_base_patch14_dinov2.lvd142m``; ``open_clip:ViT-B-32/openai`` is
    ``vit_base_patch32_clip_quickgelu_224.openai``. Other repositories (``hf-hub:user/model``) stay as they are;
    a folder (``local-dir:FOLDER``) gets its absolute path.
    """
    if name.lower().startswith(OPEN_CLIP):
        return _of_open_clip(name[len(OPEN_CLIP) :]) or name
    if name.startswith(FOLDER):  # so that another working directory finds it too
        return FOLDER + os.path.abspath(name[len(FOLDER) :])  # noqa: PTH100 - a link keeps its own name
    hub = re.sub(r"^(hf-hub:|hf_hub:|hf://|https://huggingface\.co/)(models/)?", HUB, name.rstrip("/"))
    bare = hub.removeprefix(HUB)
    if bare.startswith("timm/"):
        repository = bare.removeprefix("timm/")
        if (of_clip := _of_open_clip(f"{repository.removesuffix('-OpenCLIP')}/")) is not None:
            return of_clip  # timm/ViT-B-16-SigLIP and others of this kind hold both towers, for open_clip
        return repository
    return _of_repository(bare) or (hub if hub.startswith(HUB) else name)


def _of_open_clip(name: str) -> str | None:
    """timm's name for open_clip's ``MODEL/PRETRAINED``; with an empty ``PRETRAINED``, where there is one alone."""
    model, _, tag = name.replace("ViT-B/", "ViT-B-").replace("ViT-L/", "ViT-L-").rpartition("/")
    model = model.replace("@336px", "-336").casefold()
    if tag:
        return next((timm for key, timm in OPEN_CLIP_NAMES.items() if key.casefold() == f"{model}/{tag.lower()}"), None)
    of_model = {timm for key, timm in OPEN_CLIP_NAMES.items() if key.casefold().startswith(f"{model}/")}
    return of_model.pop() if len(of_model) == 1 else None


def _of_repository(name: str) -> str | None:
    """timm's name for a repository of the hub that holds the same weights in another library's format, or for a model
    of ``torch.hub``."""
    for repository, of_clip in _REPOSITORIES.items():
        if name.casefold() == repository.casefold():
            return OPEN_CLIP_NAMES[of_clip]
    if match := re.fullmatch(r"facebook/dinov2(-with-registers)?-(small|base|large|giant)", name):
        return f"vit_{match[2]}_patch14_{'reg4_' if match[1] else ''}dinov2.lvd142m"
    if match := re.fullmatch(r"dinov2_vit([sblg])14(_reg)?", name):
        return f"vit_{_SIZES[match[1]]}_patch14_{'reg4_' if match[2] else ''}dinov2.lvd142m"
    if match := re.fullmatch(r"facebook/dinov3-vit(s|b|l|h|7b)16(plus)?-pretrain-(lvd1689m|sat493m)", name):
        size = match[1] + ("plus" if match[2] else "")
        return f"vit_{_DINOV3.get(size, size)}_patch16_dinov3.{match[3]}"
    if match := re.fullmatch(r"dinov3_vit(s|b|l|h|7b)16(plus)?", name):
        size = match[1] + ("plus" if match[2] else "")
        return f"vit_{_DINOV3.get(size, size)}_patch16_dinov3.lvd1689m"
    if match := re.fullmatch(r"(?:facebook/)?dinov3[-_]convnext[-_](tiny|small|base|large)(-pretrain-lvd1689m)?", name):
        return f"convnext_{match[1]}.dinov3_lvd1689m"
    if match := re.fullmatch(r"google/siglip(2?)-(base|large|so400m)-patch(\d+)-(\d+)", name):
        of_two = bool(match[1])
        size = "378" if of_two and (match[3], match[4]) == ("14", "384") else match[4]  # whole patches: 27 x 14
        return f"vit_{match[2]}_patch{match[3]}_siglip_{size}.{'v2_' if of_two else ''}webli"
    return None


FAMILIES = {
    "dinov2": "vit_small_patch14_dinov2.lvd142m vit_base_patch14_dinov2.lvd142m vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov3": "vit_small_patch16_dinov3.lvd1689m vit_base_patch16_dinov3.lvd1689m convnext_tiny.dinov3_lvd1689m",
    "dino": "vit_small_patch16_224.dino vit_small_patch14_dinov2.lvd142m vit_small_patch16_dinov3.lvd1689m",
    "siglip": "vit_base_patch16_siglip_224.v2_webli vit_base_patch16_siglip_224.webli "
    "vit_so400m_patch14_siglip_384.webli",
    "siglip2": "vit_base_patch16_siglip_224.v2_webli vit_so400m_patch14_siglip_378.v2_webli",
    "clip": "vit_base_patch32_clip_quickgelu_224.openai vit_base_patch16_clip_224.laion2b "
    "vit_large_patch14_clip_quickgelu_224.openai",
    "openclip": "vit_base_patch32_clip_224.laion2b vit_base_patch16_clip_224.datacompxl "
    "vit_large_patch14_clip_224.laion2b",
    "mobileclip": "fastvit_mci0.apple_mclip2_dfndr2b fastvit_mci2.apple_mclip2_dfndr2b",
    "eva02": "eva02_base_patch16_clip_224.merged2b eva02_large_patch14_clip_224.merged2b",
    "vit": "vit_small_patch16_224.augreg_in21k vit_base_patch16_224.augreg_in21k vit_base_patch16_clip_224.laion2b",
    "efficientnet": "tf_efficientnet_lite0.in1k efficientnet_b0.ra_in1k tf_efficientnetv2_s.in21k",
    "resnet": "resnet18.a1_in1k resnet50.tv_in1k resnet101.a1h_in1k",
    "convnext": "convnext_tiny.in12k convnext_base.clip_laion2b convnextv2_tiny.fcmae_ft_in22k_in1k",
    "swin": "swin_tiny_patch4_window7_224.ms_in22k swin_base_patch4_window7_224.ms_in22k",
}
"""Some of timm's names for what people call a model in one word, the small ones first."""
