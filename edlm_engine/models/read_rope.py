"""The rotary embeddings of a config.json, in the forms that transformers 4 and 5 write."""

import math

from ..errors import shown
from ..rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from .config_reader import LARGEST, MOST, ConfigReader


def read_rope(
    reader: ConfigReader, default_theta: float, max_positions: int, head_dim: int
) -> tuple[Rope, int]:
    """The embeddings, and how many positions they are good for.

    default_theta: the family's, where the file names none; max_positions: the file's max_position_embeddings.
    transformers 5 keeps everything under `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`.
    """
    new, old = reader.section("rope_parameters"), reader.section("rope_scaling")
    if new and old and new.data != old.data:
        raise reader.error("rope_parameters and rope_scaling disagree; remove one of them")
    settings = new or old or ConfigReader({}, reader.path)
    if any(isinstance(value, dict) for value in settings.data.values()):
        raise settings.error("settings by layer type are not supported")
    theta = settings.positive("rope_theta", reader.positive("rope_theta", default_theta))
    if (share := settings.get("partial_rotary_factor", float, 1.0)) != 1.0:
        raise settings.error(f"partial_rotary_factor is {share}; only whole heads are rotated here")
    kind = settings.get("rope_type", str, settings.get("type", str, "default"))
    if kind not in _KINDS:
        raise reader.error(f"rope type {shown(kind)} is not supported; known: {', '.join(_KINDS)}")
    rope = Rope(theta, _KINDS[kind](settings, max_positions))
    if not _is_finite(rope, head_dim):
        raise settings.error(
            f"rope_theta {theta} and the settings of type {kind!r} give no finite frequencies"
        )
    if kind == "yarn":
        stretched = rope.scaling.original_positions * rope.scaling.factor
        max_positions = max(max_positions, int(min(stretched, MOST)))
    return rope, max_positions


def _is_finite(rope: Rope, head_dim: int) -> bool:
    try:
        frequencies = rope.frequencies(head_dim)
    except (ArithmeticError, ValueError):  # logarithms of 0, divisions by it
        return False
    return bool(frequencies.isfinite().all()) and rope.amplitude <= LARGEST


def _default(settings: ConfigReader, max_positions: int) -> None:
    return None


def _linear(settings: ConfigReader, max_positions: int) -> LinearScaling:
    return LinearScaling(settings.positive("factor"))


def _llama3(settings: ConfigReader, max_positions: int) -> Llama3Scaling:
    low, high = settings.positive("low_freq_factor"), settings.positive("high_freq_factor")
    if low >= high:
        raise settings.error(f"high_freq_factor must be above low_freq_factor {low}, got {high}")
    original = settings.size("original_max_position_embeddings", max_positions)
    return Llama3Scaling(settings.positive("factor"), low, high, original)


def _yarn(settings: ConfigReader, max_positions: int) -> YarnScaling:
    original = settings.size("original_max_position_embeddings", max_positions)
    # some name the original length alone, and leave the factor to be the ratio
    factor = settings.positive("factor", max_positions / original if original != max_positions else ...)
    scale, over = settings.get("mscale", float, 0.0), settings.get("mscale_all_dim", float, 0.0)
    usual = _mscale(factor, scale) / _mscale(factor, over) if scale and over else _mscale(factor, 1.0)
    return YarnScaling(
        factor,
        original,
        amplitude=settings.positive("attention_factor", usual),
        beta_fast=settings.positive("beta_fast", 32.0),
        beta_slow=settings.positive("beta_slow", 1.0),
        truncate=settings.get("truncate", bool, True),
    )


def _mscale(factor: float, weight: float) -> float:
    """YaRN's amplitude, arXiv 2309.00071, eq. 22, with DeepSeek's weight."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
