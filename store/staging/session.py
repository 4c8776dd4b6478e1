"""Session: the file in the host tier that tells a command what is staged for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Corrupt, NotFound, StorageFailed, reason
from ..tiers.extent import KEY
from ..tiers.ipc import Handle
from ..user_file import open_user_file

SESSION_FORMAT = 1
_SESSION_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class RunSession:
    """What a run tells its command: the tier, the artifacts by name, and the keys of a plan's objects."""

    path: Path
    to: str
    artifacts: tuple[tuple[str, str], ...]
    keys: tuple[str, ...] = ()
    handles: Mapping[str, Handle] = field(default_factory=dict)  # by key, of objects on an accelerator already
    budget_bytes: int | None = None  # the budget of the device

    @property
    def plan_path(self) -> Path:
        return self.path.with_suffix(".plan")

    @property
    def socket_path(self) -> Path:
        return self.path.with_suffix(".socket")

    def packed(self) -> bytes:
        """Return the session as JSON; `read_session` reads it."""
        artifacts = [{"name": name, "key": key} for name, key in self.artifacts]
        value = {"format": SESSION_FORMAT, "to": self.to, "artifacts": artifacts, "keys": self.keys}
        return json.dumps(value | {"handles": self.handles, "budget": self.budget_bytes}).encode()


def read_session(path: Path) -> RunSession:
    """Return a session; raise NotFound if its objects were released, Corrupt if the file is no session."""
    try:
        with open_user_file(path) as file:
            value = json.loads(file.read(_SESSION_MAX_BYTES))
        artifacts = tuple((str(row["name"]), str(row["key"])) for row in value["artifacts"])
        keys = tuple(map(str, value.get("keys", ())))
        all_keys = (*(key for _, key in artifacts), *keys)
        if value["format"] != SESSION_FORMAT or not all(map(KEY.fullmatch, all_keys)):
            raise ValueError("its format is not known")
        budget = value.get("budget")
        handles = {str(key): list(handle) for key, handle in value.get("handles", {}).items()}
        return RunSession(
            path, str(value.get("to", "host")), artifacts, keys, handles, None if budget is None else int(budget)
        )
    except FileNotFoundError:
        raise NotFound(str(path), "what was staged is released") from None
    except OSError as error:
        raise StorageFailed(str(path), reason(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Corrupt(str(path), f"is no session ({error})") from None
