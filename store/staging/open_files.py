"""Limits of this process, raised where there is a need."""

import resource

_SPARE_FILES = 100  # that any process may take to have left


def allow_files(count: int) -> None:
    """Let this process have so many more files open, as far as its hard limit goes: each object in place is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(soft + count, hard) if hard != resource.RLIM_INFINITY else soft + count
    if count > _SPARE_FILES and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
