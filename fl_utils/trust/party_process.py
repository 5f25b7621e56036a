"""One party of a secure sum, as a process: started by `parties.secure_sum`, ends with the process that started it.

Reads its own input (int64, .npy) from standard input, shares it with the others by MPyC, adds up the shares that it
holds, and writes its share of the sum (.npz) to standard output. What it does is told on standard error.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

import numpy as np

from fl_utils.children import end_with_parent


class _SocketLoop(asyncio.SelectorEventLoop):
    """Has MPyC's connections run over Unix sockets in one folder, a "port" being a file there.

    MPyC itself would listen on all network interfaces and take whoever connects first for the expected party; the
    folder can be opened by this user only.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder

    async def create_server(self, factory, host=None, port=None, **_):
        return await self.create_unix_server(factory, path=str(self._folder / str(port)))

    async def create_connection(self, factory, host=None, port=None, **_):
        return await self.create_unix_connection(factory, path=str(self._folder / str(port)))


def main() -> None:
    parent, index, parties, threshold, modulus = (int(text) for text in sys.argv[1:6])
    if not end_with_parent(parent):
        return
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # MPyC logs to standard output, which is for the result
    folder = Path(sys.argv[6])
    # MPyC reads its options from the command line. Nothing here needs pseudorandom shares (they cost set-up).
    sys.argv = ["party", "-M", str(parties), "-I", str(index), "--no-prss"]
    import mpyc  # noqa: F401  (it chooses the kind of event loop, so it comes before ours is set)

    asyncio.set_event_loop(_SocketLoop(folder))
    from mpyc.runtime import mpc

    mpc.threshold = threshold  # the option stops at m/2, which products of shares need; sums do not
    share, facts = mpc.run(_share_of_sum(mpc, np.load(sys.stdin.buffer), modulus))
    np.savez(output, share=share, **facts)
    output.close()


async def _share_of_sum(mpc, numbers: np.ndarray, modulus: int) -> tuple[np.ndarray, dict]:
    await mpc.start()
    began = time.perf_counter()
    secure = mpc.SecFld(modulus=modulus)
    inputs = mpc.input(secure.array(secure.field.array(numbers.astype(object))))
    _say("has sent the others their shares")
    total = inputs[0]
    for shares in inputs[1:]:
        total = total + shares
    share = (await mpc.gather(total)).value.astype(np.int64)
    _say("has its share of the sum")
    facts = {"bytes_sent": sum(peer.protocol.nbytes_sent for peer in mpc.parties if peer.pid != mpc.pid),
             "duration_s": time.perf_counter() - began}
    await mpc.shutdown()
    return share, facts


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
