"""Computes, writes one file, appends to another, and prints: each line by another way of buffering."""
import hashlib
import json

STEPS = 1500

state = {"sum": 0, "digest": "start"}
with open("output.json-lines", "w", encoding="utf-8") as lines:
    for step in range(STEPS):
        for turn in range(9000):
            state["sum"] = (state["sum"] * 31 + turn * step) % 1_000_000_007
        state["digest"] = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        lines.write(json.dumps({"step": step, **state}) + "\n")
        with open("output.log", "a", encoding="utf-8") as log:
            log.write(f"step {step}: {state['digest']}\n")
        print(step, state["sum"], flush=step % 10 == 0)
