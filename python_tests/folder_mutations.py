"""Mutations of a checkpoint folder that know what its files hold: JSON values, headers of tensors, links."""

import json
import os
import struct
from pathlib import Path

from hypothesis import strategies as st

DEEP = json.loads("[" * 300 + "]" * 300)
VALUES = [
    None, True, False, 0, 1, -1, 2, 16, 2**15, 2**24, 2**31 - 1, 2**31, 2**32, 2**40, 2**63, 10**400,
    -(10**400), 0.5, -0.0, 1e-320, 1e-45, 1e38, 1e308, float("nan"), float("inf"), "", "x", "x" * 5000,
    "\x1b[2J", "\ud800", "a\0b", "../x", "/dev/zero", ".", "model.safetensors", [], {}, [None], [{}], [[]],
    {"": 1}, {"content": []}, DEEP, [1] * 2000, "F32", "I64", "F8_E4M3", "bfloat16", [1, -1], [2**62, 4],
    [2**31, 2**31],
]  # fmt: skip
WORDS = [
    "rope_scaling", "rope_parameters", "rope_theta", "factor", "rope_type", "type", "quantization_config",
    "original_max_position_embeddings", "quant_method", "layer_types", "sliding_window", "eos_token_id",
    "mask_token_id", "tie_word_embeddings", "attention_bias", "dlm_type", "architectures", "model_type",
    "head_dim", "weight_map", "chat_template", "added_tokens_decoder", "add_bos_token", "__metadata__",
]  # fmt: skip
SCALINGS = ["linear", "llama3", "yarn", "dynamic", "longrope", "default"]
# Parts of tokenizer.json that the tokenizers library runs, and that must be trusted: they stay as they are.
EXPRESSIONS = {"normalizer", "pre_tokenizer", "post_processor", "decoder", "model"}
FILE_CHANGES = ["delete", "folder", "pipe", "endless", "dangling", "empty", "sparse", "swap", "garbage"]

values = st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=5)
places = st.integers(0, 2**16)
of_json = st.tuples(
    st.just("json"), places, st.sampled_from(["set"] * 3 + ["delete", "rename", "add", "swap", "rope"]),
    places, values, st.sampled_from(WORDS),
)  # fmt: skip
of_bytes = st.tuples(
    st.just("bytes"), places, st.sampled_from(["cut", "flip", "insert", "bom", "utf16"]), places
)
of_tensors = st.tuples(
    st.just("header"), st.sampled_from(["set", "set", "delete", "rename", "length"]), places, values
)
of_files = st.tuples(st.just("file"), places, st.sampled_from(FILE_CHANGES), places)
mutations = st.lists(
    st.one_of(of_json, of_json, of_json, of_tensors, of_bytes, of_files), min_size=1, max_size=3
)


def apply(folder: Path, changes: list[tuple]) -> list[tuple[str, str]]:
    """Change the files of a folder; what can no longer be changed stays. Returns what was: (file, change)."""
    done = []
    for kind, *rest in changes:
        try:
            done.append(
                {"json": _json, "bytes": _bytes, "header": _header, "file": _file}[kind](folder, *rest)
            )
        except (OSError, ValueError, struct.error, RecursionError):  # an earlier change has broken the file
            continue
    return done


def _pick(options: list, place: int):
    if not options:
        raise ValueError("nothing to choose from")
    return options[place % len(options)]


def _regular(folder: Path, *suffixes: str) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    files = [path for path in files if path.stat().st_size < 1 << 20]
    return [path for path in files if not suffixes or path.suffix in suffixes]


def _paths(data, path=()):
    """Every place in a JSON value, whole parts that must be trusted left out."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if key in EXPRESSIONS:
            continue
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _json(folder: Path, place: int, how: str, where: int, value, word: str):
    path = _pick(_regular(folder, ".json"), place)
    data = json.loads(path.read_text())
    key = _change(data, how, where, value, word)
    path.write_text(json.dumps(data))
    return path.name, f"{how} {key}"


def _change(data, how: str, where: int, value, word: str = "x"):
    if how == "rope":
        data["rope_scaling"] = {"rope_type": _pick(SCALINGS, where), "factor": value, "beta_fast": value}
        return "rope"
    all_paths = list(_paths(data))
    *parents, key = _pick(all_paths, where)
    holder = data
    for parent in parents:
        holder = holder[parent]
    if how == "set":
        holder[key] = value
    elif how == "delete":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[word] = holder.pop(key)
    elif how == "add" and isinstance(holder, dict):
        holder[word] = value
    elif how == "swap":
        other = _pick(list(holder) if isinstance(holder, dict) else list(range(len(holder))), where // 7)
        holder[key], holder[other] = holder[other], holder[key]
    return str(key)


def _header(folder: Path, how: str, where: int, value):
    path = _pick(_regular(folder, ".safetensors"), where)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if how == "length":
        length = value if isinstance(value, int) and 0 <= value < 2**64 else size + where % 17
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        return path.name, how
    key = _change(header, how, where, value, f"model.layers.{where % 5}.mlp.down_proj.weight")
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    return path.name, f"{how} {key}"


def _bytes(folder: Path, place: int, how: str, where: int):
    path = _pick([path for path in _regular(folder) if path.name != "tokenizer.json"], place)
    data = bytearray(path.read_bytes())
    at = where % max(1, len(data))
    if how == "cut":
        del data[at:]
    elif how == "flip" and data:
        data[at] ^= 1 << (where % 8)
    elif how == "insert":
        data[at:at] = _pick([b"\0", b"\xff", b"\n", b"[" * 3000, b"9" * 5000, b"{}"], where)
    elif how == "bom":
        data[:0] = b"\xef\xbb\xbf"
    elif how == "utf16" and path.suffix != ".safetensors":
        data = data.decode(errors="ignore").encode("utf-16")
    path.write_bytes(data)
    return path.name, how


def _file(folder: Path, place: int, how: str, where: int):
    path = _pick(_regular(folder), place)
    other = _pick(_regular(folder), where).read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("endless", "dangling"):
        path.symlink_to("/dev/zero" if how == "endless" else "nowhere")
    elif how == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 36)
    elif how in ("empty", "swap", "garbage"):
        path.write_bytes({"empty": b"", "swap": other, "garbage": bytes(range(256))}[how])
    return path.name, how
