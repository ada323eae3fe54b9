"""All benches, in the order in which they are run."""

from typing import Final

from bench.brownout import BROWNOUT
from bench.convergence import CONVERGENCE
from bench.cpu import CPU
from bench.downtime import DOWNTIME
from bench.encryption import ENCRYPTION
from bench.link import LINK
from bench.measurement import Measurement
from bench.scale import SCALE
from bench.throughput import THROUGHPUT

BENCHES: Final[dict[str, Measurement]] = {
    bench.name: bench
    for bench in (
        *(DOWNTIME, THROUGHPUT, ENCRYPTION, BROWNOUT, CONVERGENCE, SCALE, LINK, CPU),
    )
}
