"""A model beside other pages of a FastAPI application: uvicorn fastapi_app:app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from codedinv import CodedServer
from codedinv.gateway import create_app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with CodedServer("fashion-mnist", workers=5) as server:  # in this event loop
        app.mount("/models", create_app(server))
        app.state.server = server
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/hello")
async def hello() -> dict[str, int]:
    return {"queries": app.state.server.stats().accepted}


if __name__ == "__main__":
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        query = {"name": "query", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [0.0] * 784}
        answer = client.post("/models/v2/models/fashion-mnist/infer", json={"inputs": [query]})
        print(answer.json()["parameters"]["source"], client.get("/hello").json())
