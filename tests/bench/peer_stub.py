"""A peer that learns nothing, for the protocol: 1,000 env steps a second; returns rise with iterations and rate."""

import json
import sys

setup = json.loads(sys.stdin.readline())
if setup["seed"] == 13:
    sys.exit("this seed brings bad luck")
print(json.dumps({"versions": {}, "threads": setup["threads"]}), flush=True)
iterations = 0
for line in sys.stdin:
    command = json.loads(line)
    if "iterate" in command:
        iterations += command["iterate"]
        env_steps = command["iterate"] * setup["num_envs"] * setup["length"]
        print(json.dumps({"env_steps": env_steps, "seconds": env_steps / 1000}), flush=True)
    elif "evaluate" in command:
        print(json.dumps({"agent_return_mean": iterations * 100 * setup["lr"] - command["explore"]}), flush=True)
    elif "fail" in command:
        print(json.dumps({"error": "ValueError: asked to"}), flush=True)
    else:
        print("Hello!", flush=True)
