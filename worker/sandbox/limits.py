"""How much a program may use. Time is the tests' own; the rest is the same for every program."""

from dataclasses import asdict, dataclass

MEGABYTE = 1 << 20
PATIENCE = 5
"""On a busy machine a program may take up to so many times its seconds: waiting for a processor is not its fault. The processor time
that it uses is bounded all the same."""


@dataclass(frozen=True)
class Limits:
    """Bounds on one program. One process and its threads, so they need no adding up."""

    seconds: float = 4.0
    """By the clock outside, from the program's first line to its last answer, less what it waited for a processor."""
    memory: int = 512 * MEGABYTE
    """Address space in bytes."""
    threads: int = 64
    """Threads of one program."""
    file_bytes: int = 8 * MEGABYTE
    """The largest file."""
    folder_bytes: int = 16 * MEGABYTE
    """All files in the working folder together."""
    files: int = 4096
    """Files in it, the empty ones too."""
    open_files: int = 64
    """Open files at once."""
    output_bytes: int = 64 << 10
    """What it may print, standard output and error together."""
    answer_bytes: int = MEGABYTE
    """What its answers may take, encoded."""

    def inside(self, running: int) -> dict[str, int]:
        """What the process sets for itself before the program begins; *running*: tasks its user has already."""
        cpu = int(self.seconds) + 1
        return {
            "RLIMIT_CPU": cpu,
            "RLIMIT_AS": self.memory,
            "RLIMIT_NPROC": running + self.threads,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_MEMLOCK": 0,
        }

    def plain(self) -> dict[str, float]:
        """For the wire."""
        return asdict(self)
