"""Before anything loads torch: threads that wait without spinning, as in the program itself."""

from openwork import threads  # noqa: F401
