import json, os, threading, time
import psycopg, pytest
from audit.models import Head, Outbox, Record
from governance.snapshot import snapshots
from tests.world import World, build, token
from tools.models import Tool, Scope

@pytest.fixture
def world(db):
    w = build(); assert w.verify()["decision"] == "allow"; w.http.raise_request_exception = False; return w

def put(world, body):
    return world.http.put("/v1/tools", json.dumps(body, separators=(",", ":")), content_type="application/json", headers={"Authorization": f"Bearer {world.key}"})

def test_huge_declaration(world):
    body = lambda a: {"tools": [{"name": f"t{i}", "access": "read", "scopes": [f"{a}{j}" for j in range(40)]} for i in range(850)]}
    print("BYTES", len(json.dumps(body("s"), separators=(",", ":"))))
    worst, stop, codes = [0.0], threading.Event(), {}
    def verify_loop():
        from django.db import connections
        while not stop.is_set():
            t = time.time(); r = world.post("/v1/verify", {"token": token(), "tool": "memory.recall"})
            worst[0] = max(worst[0], time.time() - t); codes[r.status_code] = codes.get(r.status_code, 0) + 1
            time.sleep(0.05)
        connections.close_all()
    th = threading.Thread(target=verify_loop); th.start()
    t = time.time(); r = put(world, body("s")); print("PUT", r.status_code, round(time.time() - t, 1), "s; outbox rows", Outbox.objects.filter(record_index=None).count())
    for _ in range(40):
        time.sleep(1)
        h = Head.objects.get()
        if h.policy == h.drained: break
    print("DRAINED", h.policy, h.drained, "after", round(time.time() - t, 1), "undrained", Outbox.objects.filter(record_index=None).count())
    stop.set(); th.join()
    print("worst verify", round(worst[0], 2), codes)
    t = time.time(); snapshots.newer_than(10**9); print("SNAPSHOT LOAD", round(time.time() - t, 2))
    print("scopes", Scope.objects.count(), "tools", Tool.objects.count())
