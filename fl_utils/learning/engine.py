"""TFF's execution engine: the only place that touches TFF's execution context and owns its worker process.

    from fl_utils.learning import engine
    engine.ensure_started()      # then call any TFF computation or learning process

TFF computes in a separate C++ program, the worker. TFF's default context starts one at the first call, lets it write
into the caller's output, waits for it without limit, retries a dying one for ever, and leaves it behind when Python
ends. This module builds the context from TFF's public parts (`tff.framework`) with a worker of its own instead;
nothing in TFF is patched. The worker ends with Python, however Python ends; Ctrl-C ends the running round at once.

Security: the worker has no authentication, and as TFF ships it, it listens on all network interfaces. Here it is made
to listen on a Unix socket that only this user can open (`is_private()` says whether that held; see
`worker._listen_on_unix_socket`). Where the kernel does not allow that, it listens on all interfaces as TFF's own does:
run it behind a firewall then. The worker's working directory is not Python's: files named inside a graph need absolute paths.
"""

import asyncio
import atexit
import concurrent.futures
import contextvars
import functools
import itertools
import os
import sys
import threading
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, when TensorFlow is loaded

import numpy as np  # noqa: E402
import tensorflow_federated as tff  # noqa: E402

from fl_utils.learning import worker as worker_lib  # noqa: E402
from fl_utils.learning.worker import EngineError  # noqa: E402

__all__ = ["EngineError", "ensure_started", "is_private", "is_running", "log_path", "stop", "worker_pid"]

# TFF retries a call whose worker is lost. One lost worker is an accident; after so many for one call it is the call.
MAX_ATTEMPTS = 3
_attempts: contextvars.ContextVar = contextvars.ContextVar("attempts")  # counts those of one call


class _ExecutorFactory(tff.framework.ResourceManagingExecutorFactory):
    """TFF's factory; remembers why an executor was given up, which TFF's retry loop swallows."""

    last_failure: BaseException | None = None

    def clean_up_executor(self, cardinalities):
        self.last_failure = sys.exc_info()[1] or self.last_failure
        super().clean_up_executor(cardinalities)


class _Engine(tff.framework.SyncContext):
    """A TFF context with its own event loop thread and worker. The thread starts every worker, and outlives it."""

    def __init__(self, max_concurrent_computation_calls: int, startup_timeout_s: float) -> None:
        self.max_concurrent_computation_calls = max_concurrent_computation_calls
        self.startup_timeout_s = startup_timeout_s
        self.log = worker_lib.new_log()
        self.worker: worker_lib.Worker | None = None
        self.stopped = False
        self._interrupts = 0
        self._owner_pid = os.getpid()
        self._used_cardinalities: list[dict] = []
        self._factory = _ExecutorFactory(self._new_executor)
        self._context = tff.framework.AsyncExecutionContext(
            executor_fn=self._factory,
            compiler_fn=tff.backends.native.desugar_and_transform_to_native,
            transform_args=tff.tensorflow.transform_args,
            transform_result=tff.tensorflow.transform_result,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tff_engine", daemon=True)
        self._thread.start()

    def invoke(self, comp, arg, timeout_s: float | None = None):
        """Runs a computation; TFF calls this. EngineError: the worker cannot be kept alive, or the engine is stopped."""
        if os.getpid() != self._owner_pid:
            raise EngineError("This process was forked from one that runs TFF's engine, whose worker stays with the "
                              "parent. Call fl_utils.learning.engine.ensure_started() in this process.")
        if self.stopped:
            raise EngineError("TFF's engine is stopped. Call fl_utils.learning.engine.ensure_started() first.")
        future = None
        try:
            future = asyncio.run_coroutine_threadsafe(self._invoke(comp, arg), self._loop)
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise EngineError("TFF's engine was stopped while it was computing.") from None
        except BaseException as error:
            # Ctrl-C, SystemExit or our time limit: the event loop is blocked in a call to the worker, which would go
            # on computing; and TFF would take its death for an accident and run the round again. So cancel, then kill.
            if future is not None and not future.done():
                self._abandon(future)
                if isinstance(error, concurrent.futures.TimeoutError):
                    raise EngineError(f"TFF's worker did not finish the start-up test within {timeout_s:g} s; it was "
                                      f"ended.{worker_lib.log_tail(self.log)}") from None
            raise

    async def _invoke(self, comp, arg):
        _attempts.set(itertools.count(1))
        return await self._context.invoke(comp, arg)

    def _abandon(self, future) -> None:
        self._interrupts += 1
        future.cancel()
        if self.worker is not None:
            self.worker.kill()

    def close(self) -> None:
        """Ends the worker and the thread. May be called more than once."""
        if self.stopped or os.getpid() != self._owner_pid:
            return
        self.stopped = True
        if self.worker is not None:
            self.worker.kill()
        # A computation on another thread must end with an error, not wait for ever on a loop that has stopped.
        drained = asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        try:
            drained.result(timeout=30)
        except concurrent.futures.TimeoutError:
            pass
        self._end_worker()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _new_executor(self, cardinalities):
        """TFF's factory calls this on the event loop's thread, once for each attempt at a computation."""
        attempt = next(_attempts.get())
        if attempt > MAX_ATTEMPTS:
            raise EngineError(f"A TFF computation failed {MAX_ATTEMPTS} times in a row, each time with a new worker; "
                              f"last: {_describe(self._factory.last_failure)}. A worker that dies is most often out "
                              f"of memory: fewer concurrent calls or smaller batches help.{worker_lib.log_tail(self.log)}")
        # A live worker is replaced from the second attempt on: it no longer answers, or has lost what it was given.
        if self.worker is None or not self.worker.alive() or attempt > 1:
            self._replace_worker()
        executor = tff.framework.RemoteExecutor(tff.framework.RemoteExecutorGrpcStub(self.worker.channel))
        executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
        self._used_cardinalities.append({**cardinalities})
        return executor

    def _replace_worker(self) -> None:
        self._end_worker()
        interrupts = self._interrupts
        self.worker = worker_lib.Worker.start(
            self.log, self.max_concurrent_computation_calls, self.startup_timeout_s,
            cancelled=lambda: self.stopped or self._interrupts != interrupts)

    def _end_worker(self) -> None:
        if self.worker is None:
            return
        self.worker.kill()
        while self._used_cardinalities:  # what is freed later must no longer try to tell this worker
            self._factory.clean_up_executor(self._used_cardinalities.pop())
        self.worker.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _describe(error: BaseException | None) -> str:
    details = getattr(error, "details", None)
    return f"{type(error).__name__}: {details() if callable(details) else error}"


@functools.cache
def _self_test_computation():
    @tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
    def total(values):
        return tff.federated_sum(values)

    return total


_engine: _Engine | None = None
_lock = threading.RLock()


def ensure_started(max_concurrent_computation_calls: int | None = None, startup_timeout_s: float = 120) -> None:
    """Makes TFF usable on the calling thread: starts the worker and tests it, unless it runs already.

    Args:
      max_concurrent_computation_calls: clients that the worker trains at the same time; 0 is no limit. None is 2,
        or 1 for a process that may use one core only. Another value than the running worker's restarts it.
      startup_timeout_s: seconds, for the start and again for the test; also used when a lost worker is replaced.
    Raises:
      EngineError: the worker died, did not answer in time, or added wrongly. The message has the log's last lines.
    """
    global _engine
    if max_concurrent_computation_calls is None:
        max_concurrent_computation_calls = min(2, len(os.sched_getaffinity(0)))
    with _lock:
        if _engine is not None and _engine.max_concurrent_computation_calls != max_concurrent_computation_calls:
            stop()
        if _engine is None:
            _engine = _Engine(max_concurrent_computation_calls, startup_timeout_s)
        engine = _engine
        engine.startup_timeout_s = startup_timeout_s
        # TFF keeps the default context per thread: a second thread has none until it is set there.
        tff.framework.set_default_context(engine)
        if is_running():
            return
        try:
            total = engine.invoke(_self_test_computation(), [1, 2, 3], timeout_s=2 * startup_timeout_s)
            if int(total) != 6:
                raise EngineError(f"TFF's worker summed 1 + 2 + 3 to {total}, expected 6.{worker_lib.log_tail(engine.log)}")
        except BaseException:
            stop()
            raise
        if not is_private():
            warnings.warn(
                "TFF's worker listens on all network interfaces without authentication, as TFF ships it: this kernel "
                "does not let its address be changed. Keep this machine behind a firewall while it runs.",
                RuntimeWarning,
                stacklevel=2,
            )


def stop() -> None:
    """Ends the worker; returns when it has ended. Does nothing when none is running."""
    global _engine
    with _lock:
        engine, _engine = _engine, None
        if engine is not None:
            engine.close()


def is_running() -> bool:
    """Whether this process has a live worker. After Ctrl-C it has none until the next computation starts one."""
    return worker_pid() is not None


def worker_pid() -> int | None:
    """The process id of the live worker, or None."""
    worker = None if _engine is None else _engine.worker
    return worker.pid if worker is not None and worker.alive() else None


def is_private() -> bool:
    """Whether the live worker can be reached by this user only (see the module's docstring)."""
    worker = None if _engine is None else _engine.worker
    return worker is not None and worker.alive() and worker.private


def log_path() -> Path | None:
    """The log file of the worker, or None when the engine is not started."""
    return None if _engine is None else _engine.log


def _forget_parents_engine() -> None:
    """In a forked child: the parent's worker is not ours to end, its event loop thread does not exist here."""
    global _engine, _lock
    _engine, _lock = None, threading.RLock()


os.register_at_fork(after_in_child=_forget_parents_engine)
atexit.register(stop)
