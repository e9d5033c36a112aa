"""Complete every prompt of a JSON Lines file: {"prompt": ...} a line in, the same with "text" a line out.

    python examples/batch_job.py prompts.jsonl answers.jsonl --max-new-tokens 96

Answers gather in answers.jsonl.partial, in the order of the prompts, and get their name when all are there.
After an interruption, say the same again. A prompt that is refused gets an "error" instead of a "text".
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def read(path: Path) -> list[dict]:
    records = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            try:
                records += [json.loads(line) | {}] if line.strip() else []
            except (ValueError, TypeError) as error:
                sys.exit(f"{path}:{number}: no JSON object: {error}")
    return records


def finished(partial: Path, records: list[dict]) -> int:
    """How many records an earlier run has answered; the beginning of one more is cut off."""
    if not partial.exists():
        return 0
    os.truncate(partial, partial.read_bytes().rfind(b"\n") + 1)
    answers = read(partial)
    if [answer.get("prompt") for answer in answers] != [r.get("prompt") for r in records[: len(answers)]]:
        sys.exit(f"{partial}: answers other prompts; delete it to begin anew")
    return len(answers)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default="edlm-tiny", help="folder, bundled name or hub id")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    arguments = parser.parse_args()
    records = read(arguments.prompts)
    partial = arguments.answers.with_name(f"{arguments.answers.name}.partial")
    done = finished(partial, records)
    from edlm_engine import Engine

    def complete(record: dict) -> dict:
        try:
            result = engine.generate(record.get("prompt"), max_new_tokens=arguments.max_new_tokens)
        except (ValueError, TypeError) as error:
            return record | {"error": str(error)}
        return record | {"text": result.text, "finish_reason": result.finish_reason}

    begun = told = time.monotonic()
    with (
        partial.open("a", encoding="utf-8") as out,
        Engine(arguments.model) as engine,
        ThreadPoolExecutor(64) as pool,  # requests from many threads share the engine's batch
    ):
        for count, answer in enumerate(pool.map(complete, records[done:]), 1):
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
            if (now := time.monotonic()) > told + 5 or done + count == len(records):
                print(f"{done + count}/{len(records)}, {count / (now - begun):.1f} a second", file=sys.stderr)
                told = now
    partial.replace(arguments.answers)


if __name__ == "__main__":
    main()
