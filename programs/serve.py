"""Serve the router of a configuration behind an OpenAI-compatible API, and a page at / to try it out.

The name of the model that a client asks for selects policy and operating point over the same loaded models: router,
router-threshold-0.4, router-never, router-saved-NAME (a policy of [serve.policies]). Without keys it listens at
loopback only. What was spent, by key too, stands in --out, so that caps of [budget] and [serve.api_keys] hold over all
starts; with serve.shared, over all replicas, each of which has an --out of its own. Ctrl-C or SIGTERM lets the steps
that are being made end, and stops. Needs pip install "stepwise[serve]".
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from stepwise.config import Config, ServeConfig
from stepwise.errors import ConfigError
from stepwise.lab.problems import generate
from stepwise.models.caps import Caps, uncapped
from stepwise.models.replicas import SharedCaps
from stepwise.models.shared import limit_caches
from stepwise.models.sizes import settled
from stepwise.models.store import CallCache
from stepwise.routing.planning import plan_routing
from stepwise.routing.saved import policy_from_config
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import Options, Run, program
from stepwise.seeds import stable_hash


class _Options(Options):
    neutral = ("host", "port")

    host: str | None = None
    """address to listen at; any other than loopback needs keys"""
    port: int | None = None
    """port, 0 for any that is free"""

    def overrides(self) -> list[str]:
        """Where it listens."""
        given = {"host": self.host, "port": self.port}
        return [f"serve.{key}={value}" for key, value in given.items() if value is not None]


def _plan(config: Config, args: _Options) -> Sequence[PlannedCalls]:
    """What one request of a lab problem's length takes."""
    return plan_routing(config, [policy_from_config(config.routing)], [generate("test", 1)[0].problem])


@program(_Options, doc=__doc__, plan=_plan, waits=True, same_run=uncapped)
def main(run: Run[_Options]) -> None:
    from stepwise.serve.running import RunningServer
    from stepwise.serve.service import Service

    config = settled(run.config, ["weak", "strong", "scorer"])
    secrets = {name: key.secret() for name, key in config.serve.api_keys.items()}
    if len(set(secrets.values())) < len(secrets):
        raise ConfigError("serve.api_keys: two of them have the same key; give each one of its own")
    caps = Caps(config, run.directory)
    ledgers = {
        name: caps.under(key, f"serve.api_keys.{name}", f"spent.{name}.jsonl")
        for name, key in config.serve.api_keys.items()
    }
    with ExitStack() as stack:
        router = stack.enter_context(Service.router(config))
        limit_caches(stack, router.models.weak, router.models.strong, router.models.scorer)
        shared = None
        if config.serve.shared is not None:
            name = f"{socket.gethostname()}-{stable_hash(run.directory.path.resolve()):x}"
            shared = SharedCaps(config.serve.shared, name, [caps.ledger, *ledgers.values()])
            stack.callback(shared.close)
        store = stack.enter_context(_store(run, config.serve)) if config.serve.answers else None
        server = RunningServer(router, config, caps.ledger, ledgers, secrets, store=store, shared=shared)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: server.stop())
        keys = f" with the keys {', '.join(secrets)}" if secrets else ", for this machine only, without a key"
        run.say(f"{server.url}/v1 is served{keys}; {server.url} has a page to try it out. Ctrl-C stops.")
        server.run()
        run.say(caps.ledger.summary())


def _store(run: Run[_Options], serve: ServeConfig) -> CallCache:
    if serve.shared is None:
        return CallCache(run.path("answers.jsonl"), replays_are_free=True)
    return CallCache(Path(serve.shared) / "answers.jsonl", replays_are_free=True, shared=True)


if __name__ == "__main__":
    raise SystemExit(main())
