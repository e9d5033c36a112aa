"""A completion service: an Engine in an asyncio server, with streams, and nothing but the standard library.

    python examples/service.py --port 8000
    curl localhost:8000/v1/completions -d '{"prompt": "Q: Sort [31, 4, 15] in ascending order.\\nA: "}'

It speaks as much of OpenAI's completions as its clients need ("stream": true, too), and takes every field of
SamplingParams. SIGTERM and Ctrl-C end it when what it has taken is answered.
"""

import argparse
import asyncio
import json
import signal
from contextlib import aclosing


async def complete(engine, body: bytes, writer: asyncio.StreamWriter):
    request = dict(json.loads(body))
    prompt, stream, _ = (request.pop(name, None) for name in ("prompt", "stream", "model"))
    if "max_tokens" in request:
        request["max_new_tokens"] = request.pop("max_tokens")
    if not stream:
        result = await engine.agenerate(prompt, **request)
        return send(writer, "200 OK", completion(result.text, result))
    sent = None
    async with aclosing(engine.astream(prompt, **request)) as chunks:  # closing cancels what nobody reads
        async for chunk in chunks:  # a request that is refused raises before the first one
            if sent is None:
                send(writer, "200 OK", content="text/event-stream")
            event = completion(chunk.text[len(sent or "") :], chunk.generation)
            writer.write(f"data: {json.dumps(event)}\n\n".encode())
            await writer.drain()  # raises when the client has hung up
            sent = chunk.text
    writer.write(b"data: [DONE]\n\n")


def completion(text: str, result) -> dict:
    reason = None if result is None else "length" if result.finish_reason == "length" else "stop"
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def send(writer: asyncio.StreamWriter, status: str, body: dict | None = None, content="application/json"):
    writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {content}\r\nConnection: close\r\n\r\n".encode())
    writer.write(json.dumps(body).encode() if body else b"")


async def answer(engine, answering: set, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
    """One connection, one request."""
    try:
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        sizes = [field.split(":")[1] for field in fields if field.lower().startswith("content-length:")]
        body = await reader.readexactly(int(*sizes))
        answering.add(asyncio.current_task())
        if not line.startswith("POST /v1/completions "):
            raise ValueError("there is only POST /v1/completions")
        await complete(engine, body, writer)
        await writer.drain()
    except (ValueError, TypeError) as error:
        send(writer, "400 Bad Request", {"error": {"message": str(error)}})
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        pass  # the client has hung up, or the service ends before it has asked
    finally:
        answering.discard(asyncio.current_task())
        writer.close()


async def serve(model: str, port: int):
    from edlm_engine import Engine

    stop, answering = asyncio.Event(), set()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with Engine(model) as engine:
        server = await asyncio.start_server(lambda *ends: answer(engine, answering, *ends), "127.0.0.1", port)
        print("listening on http://{}:{}".format(*server.sockets[0].getsockname()), flush=True)
        await stop.wait()
        server.close()
        await asyncio.gather(*answering, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="edlm-tiny", help="folder, bundled name or hub id")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    asyncio.run(serve(**vars(parser.parse_args())))
