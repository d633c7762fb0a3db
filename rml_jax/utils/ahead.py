"""Work in threads beside the main thread, such as reading and writing files beside the device."""

import collections
import concurrent.futures


def map_ahead(function, items, count):
    """Calls a function with each item, in threads that work ahead of the caller.

    Args:
      function: of one item; threads call it at the same time.
      items: iterable, which the calling thread reads.
      count: number of threads, and greatest number of calls that are begun ahead, which limits the memory of results.

    Yields:
      The results, in the order of the items. If the items end with an exception, it is raised after the results of
      those before. An exception of a call is raised in its place, and calls that have not begun are dropped.
    """
    pending, items, error = collections.deque(), iter(items), None
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        try:
            while error is None:
                try:
                    pending.append(pool.submit(function, next(items)))
                except StopIteration:
                    break
                except BaseException as reason:  # An interruption as well: what is done is not lost.
                    error = reason
                if len(pending) > count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for call in pending:
                call.cancel()
    if error is not None:
        raise error
