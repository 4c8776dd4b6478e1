"""Open files: raises the limit of this process, because each object in place is an open file."""

import resource

_SPARE_FILES = 100  # so many more fit under the usual limit


def allow_files(count: int) -> None:
    """Let this process have so many more files open, up to its hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(soft + count, hard) if hard != resource.RLIM_INFINITY else soft + count
    if count > _SPARE_FILES and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
