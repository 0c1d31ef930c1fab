"""A coded model behind Ray Serve: asked over HTTP and from Python, with actors as workers."""

import json
import os
import urllib.request

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve

from codedinv.data import load_test_images, to_queries
from codedinv.gateway.ray_serve import build_application

images, labels = load_test_images()
queries = to_queries(images[:40])

ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
serve.start(http_options={"host": "127.0.0.1", "port": 8123})
workers = {"workers": 5, "backend": "ray"}
handle = serve.run(build_application("fashion-mnist", server=workers))

# Over HTTP, the Open Inference Protocol.
query = {"name": "query", "datatype": "FP32", "shape": [1, 1, 28, 28]}
body = {"inputs": [{**query, "data": queries[0].ravel().tolist()}]}
request = urllib.request.Request(
    "http://127.0.0.1:8123/v2/models/fashion-mnist/infer", json.dumps(body).encode()
)
with urllib.request.urlopen(request) as answer:
    found = json.load(answer)
print("over HTTP:", found["outputs"][0]["shape"], found["parameters"]["source"])

# From Python, through a handle.
waiting = [handle.predict.remote(query) for query in queries]
predictions = [response.result() for response in waiting]
right = sum(p.outputs["label"].argmax() == y for p, y in zip(predictions, labels, strict=False))
print(f"from Python: {right} of {len(queries)} right")

serve.shutdown()
ray.shutdown()
