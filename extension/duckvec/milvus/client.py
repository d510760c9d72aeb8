"""The client: the methods of pymilvus 1.1 over a DuckDB file."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import duckdb

import duckvec
from duckvec.errors import VectorIndexError, without_kind
from duckvec.milvus import checks
from duckvec.milvus.futures import Future
from duckvec.milvus.results import TopKQueryResult
from duckvec.milvus.store import Collections
from duckvec.milvus.types import (
    CollectionSchema,
    ConnectError,
    DeprecatedError,
    IndexParam,
    IndexType,
    NotConnectError,
    ParamError,
    PartitionParam,
    Refused,
    Status,
)

SERVER_VERSION = "1.1.1"
IN_MEMORY = ":memory:"
_URLS = ("tcp://", "http://", "https://", "grpc://")

Answer = TypeVar("Answer")


class Milvus:
    """A Milvus 1.x client without a server: collections are tables of a DuckDB file.

    Every method does what the published client's does, with the same arguments and
    results: `docs/migrating-from-milvus.md` has both side by side, and what differs.
    What a server would refuse comes back as a `Status` that is not OK; arguments of a
    wrong Python type raise `ParamError`. `timeout` is accepted everywhere and not
    needed: nothing travels over a network.

    Threads: any thread may call any method; calls wait for each other. `_async=True`
    runs a call in the client's own thread, after those before it, and returns at once.
    `_lock` protects the connection and the collections: one call at a time, as long as
    it takes. `_worker_lock` protects `_worker` and `_closed` for a moment: no SQL runs
    under it, and nobody holds both. A context manager.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | str | None = None,
        handler: str = "GRPC",
        pool: str = "SingletonThread",
        *,
        uri: str | None = None,
        connection: duckdb.DuckDBPyConnection | None = None,
        **kwargs: Any,
    ) -> None:
        """Open a database.

        Args:
            host: accepted for scripts that name a server, and not used.
            port: likewise.
            handler: likewise.
            pool: likewise.
            uri: the DuckDB file, made where there is none; without it, in memory.
            connection: a DuckDB connection to work in, instead of a file.
            kwargs: further options of the published client, not used.

        Raises:
            ConnectError: the file cannot be opened.
        """
        if host is not None or port is not None:
            warnings.warn(
                "host and port are not used: collections are in a DuckDB file; name it "
                "by uri",
                stacklevel=2,
            )
        self._lock = threading.Lock()
        self._worker_lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._worker_thread: int | None = None
        self._closed = False
        self._con: duckdb.DuckDBPyConnection | None = None
        if uri is not None and uri.startswith(_URLS):
            raise ConnectError(f"{uri} is no file; give the path of a DuckDB file")
        try:
            con = (
                connection.cursor()
                if connection is not None
                else duckdb.connect(uri or IN_MEMORY)
            )
            handle = duckvec.load(con)
        except (duckdb.Error, VectorIndexError, OSError) as error:
            raise ConnectError(without_kind(error)) from error
        self._con = con
        self._collections = Collections(con, handle)

    def __enter__(self) -> Milvus:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> None:
        """Of no meaning, as in the published client."""
        return None

    @property
    def handler(self) -> str:
        """What does the work."""
        return "DuckDB"

    def set_hook(self, **kwargs: Any) -> None:
        """Given up by the published client.

        Raises:
            DeprecatedError: always.
        """
        raise DeprecatedError("set_hook was given up in Milvus 1.1")

    def connect(
        self,
        host: str | None = None,
        port: int | str | None = None,
        uri: str | None = None,
        timeout: float | None = 2,
    ) -> None:
        """Given up by the published client: the constructor connects.

        Raises:
            DeprecatedError: always.
        """
        raise DeprecatedError("connect was given up in Milvus 1.1; use Milvus(uri=…)")

    def connected(self) -> None:
        """Given up by the published client.

        Raises:
            DeprecatedError: always.
        """
        raise DeprecatedError("connected was given up in Milvus 1.1")

    def disconnect(self) -> None:
        """Given up by the published client: use `close`.

        Raises:
            DeprecatedError: always.
        """
        raise DeprecatedError("disconnect was given up in Milvus 1.1; use close()")

    def close(self) -> None:
        """Close the database; further calls raise NotConnectError.

        Waits for what `_async` calls have begun. In a callback nothing can wait for
        them: they go on, and the database is closed after the last one.
        """
        inside = threading.get_ident() == self._worker_thread
        with self._worker_lock:
            worker, was_open = self._worker, not self._closed
            self._closed = True
            if worker is not None and inside and was_open:
                worker.submit(self._close_connection)
        if worker is not None:
            worker.shutdown(wait=not inside)
        if not inside:
            self._close_connection()

    def _close_connection(self) -> None:
        with self._lock:
            con, self._con = self._con, None
        if con is not None:
            con.close()

    def client_version(self) -> str:
        """Return the version of duckvec."""
        return duckvec.__version__

    def server_status(self, timeout: float | None = 30) -> tuple[Status, str | None]:
        """Tell that it works."""
        return self._answer(lambda: "OK")

    def server_version(self, timeout: float | None = 30) -> tuple[Status, str | None]:
        """Return the version of Milvus whose behaviour this follows."""
        return self._answer(lambda: SERVER_VERSION)

    def get_config(self, parent_key: str, child_key: str) -> tuple[Status, str | None]:
        """Say that there is no server to configure."""
        return self._answer(_no_config)

    def set_config(
        self, parent_key: str, child_key: str, value: Any
    ) -> tuple[Status, str | None]:
        """Say that there is no server to configure."""
        return self._answer(_no_config)

    def create_collection(self, param: Any, timeout: float | None = 30) -> Status:
        """Create a collection.

        Args:
            param: a dictionary with collection_name, dimension, index_file_size (1024
                by default) and metric_type (L2 by default).
            timeout: not needed.
        """
        return self._do(
            lambda: self._collections.create(*checks.check_collection(param))
        )

    def has_collection(
        self, collection_name: str, timeout: float | None = 30
    ) -> tuple[Status, bool]:
        """Tell whether there is such a collection."""
        name = checks.check_text("collection_name", collection_name)
        return self._answer(
            lambda: self._collections.has(checks.check_collection_name(name)), False
        )

    def get_collection_info(
        self, collection_name: str, timeout: float | None = 30
    ) -> tuple[Status, CollectionSchema | None]:
        """Return what a collection was created with."""
        name = checks.check_text("collection_name", collection_name)

        def work() -> CollectionSchema:
            found = self._collections.find(name)
            return CollectionSchema(
                name, found.dimension, found.index_file_size, found.metric
            )

        return self._answer(work)

    def count_entities(
        self, collection_name: str, timeout: float | None = 30
    ) -> tuple[Status, int | None]:
        """Return how many entities a collection holds."""
        name = checks.check_text("collection_name", collection_name)
        collections = self._collections
        return self._answer(lambda: collections.count(collections.find(name)))

    def list_collections(self, timeout: float | None = 30) -> tuple[Status, list[str]]:
        """Return the names of all collections."""
        return self._answer(lambda: self._collections.names(), [])

    def get_collection_stats(
        self, collection_name: str, timeout: float | None = 30
    ) -> tuple[Status, dict[str, Any] | None]:
        """Return rows and bytes by partition; each is one segment here."""
        name = checks.check_text("collection_name", collection_name)
        collections = self._collections
        return self._answer(lambda: collections.stats(collections.find(name)))

    def load_collection(
        self,
        collection_name: str,
        partition_tags: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Status:
        """Do nothing for a collection that is there: indexes open when searched."""
        return self._require(collection_name, partition_tags)

    def release_collection(
        self,
        collection_name: str,
        partition_tags: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Status:
        """Do nothing for a collection that is there."""
        return self._require(collection_name, partition_tags)

    def reload_segments(
        self,
        collection_name: str,
        segment_ids: Sequence[Any],
        timeout: float | None = None,
    ) -> Status:
        """Do nothing for a collection that is there."""
        return self._require(collection_name, None)

    def drop_collection(
        self, collection_name: str, timeout: float | None = 30
    ) -> Status:
        """Drop a collection, its table and its index."""
        name = checks.check_text("collection_name", collection_name)
        collections = self._collections
        return self._do(lambda: collections.drop(collections.find(name)))

    def insert(
        self,
        collection_name: str,
        records: Any,
        ids: Sequence[int] | None = None,
        partition_tag: str | None = None,
        params: dict[str, Any] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Add entities.

        Args:
            collection_name: the collection.
            records: vectors, (n, d).
            ids: one for each; None generates them. Always given or never.
            partition_tag: the partition; None is the default one.
            params: reserved.
            timeout: not needed.
            kwargs: `_async=True` returns a Future, and `_callback` gets status and ids.

        Returns:
            Status and ids; no ids where the status is not OK.

        Raises:
            ParamError: wrong types, or another number of ids than of vectors.
        """
        if kwargs.get("insert_param") is not None:
            raise ParamError("`insert_param` is not taken here; give name and records")
        name = checks.check_text("collection_name", collection_name)
        if partition_tag is not None:
            checks.check_text("partition_tag", partition_tag)
        checks.check_params(params)
        numbers = None if ids is None else checks.check_ids("ids", ids)
        vectors = _checked(lambda: checks.check_records("records", records))
        if numbers is not None and len(records) != len(numbers):
            raise ParamError("length of vectors do not match that of ids")

        def work() -> list[int]:
            found = self._collections.find(name)
            return self._collections.insert(found, vectors(), numbers, partition_tag)

        return self._answer_or_later(work, kwargs, [], [])

    def get_entity_by_id(
        self,
        collection_name: str,
        ids: Sequence[int],
        timeout: float | None = None,
        partition_tag: str | None = None,
    ) -> tuple[Status, list[list[float]]]:
        """Return the vector of each id, an empty list for an unknown one."""
        name = checks.check_text("collection_name", collection_name)
        numbers = checks.check_ids("ids", ids)
        if partition_tag is not None:
            checks.check_text("partition_tag", partition_tag)
        collections = self._collections
        return self._answer(
            lambda: collections.entities(
                collections.find(name), numbers, partition_tag
            ),
            [],
        )

    def list_id_in_segment(
        self, collection_name: str, segment_name: str, timeout: float | None = None
    ) -> tuple[Status, list[int]]:
        """Return the ids of a segment, which is a partition here."""
        name = checks.check_text("collection_name", collection_name)
        tag = checks.check_text("segment_name", segment_name)
        collections = self._collections
        return self._answer(lambda: collections.ids_of(collections.find(name), tag), [])

    def delete_entity_by_id(
        self,
        collection_name: str,
        id_array: Sequence[int],
        timeout: float | None = None,
        partition_tag: str | None = None,
    ) -> Status:
        """Delete entities; unknown ids are skipped. They are gone at once."""
        name = checks.check_text("collection_name", collection_name)
        numbers = checks.check_ids("id_array", id_array)
        if partition_tag is not None:
            checks.check_text("partition_tag", partition_tag)
        collections = self._collections
        return self._do(
            lambda: collections.delete(collections.find(name), numbers, partition_tag)
        )

    def create_index(
        self,
        collection_name: str,
        index_type: IndexType | int | None = None,
        params: dict[str, Any] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Build an index in place of the one there is.

        Args:
            collection_name: the collection.
            index_type: itself or its number; FLAT without one.
            params: the type's build parameters, all mandatory: a dictionary.
            timeout: not needed.
            kwargs: `_async=True` returns a Future, and `_callback` gets the status.

        Raises:
            ParamError: index_type is none, or params are of another Python type.
        """
        name = checks.check_text("collection_name", collection_name)
        kind = checks.check_index_type(
            IndexType.FLAT if index_type is None else index_type
        )
        checked = checks.check_params(params)
        collections = self._collections

        def work() -> None:
            collections.create_index(collections.find(name), kind, checked)

        return self._do_or_later(work, kwargs)

    def get_index_info(
        self, collection_name: str, timeout: float | None = 30
    ) -> tuple[Status, IndexParam | None]:
        """Return type and build parameters; FLAT where there is no index."""
        name = checks.check_text("collection_name", collection_name)

        def work() -> IndexParam:
            kind, params, _ = self._collections.index_of(self._collections.find(name))
            return IndexParam(name, kind, params)

        return self._answer(work)

    def drop_index(self, collection_name: str, timeout: float | None = 30) -> Status:
        """Go back to FLAT; searches go on, exactly."""
        name = checks.check_text("collection_name", collection_name)
        collections = self._collections
        return self._do(lambda: collections.drop_index(collections.find(name)))

    def create_partition(
        self, collection_name: str, partition_tag: str, timeout: float | None = 30
    ) -> Status:
        """Create a partition."""
        name = checks.check_text("collection_name", collection_name)
        tag = checks.check_text("partition_tag", partition_tag)
        collections = self._collections
        return self._do(
            lambda: collections.create_partition(collections.find(name), tag)
        )

    def has_partition(
        self, collection_name: str, partition_tag: str, timeout: float | None = 30
    ) -> tuple[Status, bool]:
        """Tell whether there is such a partition."""
        name = checks.check_text("collection_name", collection_name)
        tag = checks.check_text("partition_tag", partition_tag)
        collections = self._collections
        return self._answer(
            lambda: tag in collections.partitions(collections.find(name)), False
        )

    def list_partitions(
        self, collection_name: str, timeout: float | None = 30
    ) -> tuple[Status, list[PartitionParam]]:
        """Return all partitions, the default one first."""
        name = checks.check_text("collection_name", collection_name)

        def work() -> list[PartitionParam]:
            found = self._collections.find(name)
            tags = self._collections.partitions(found)
            return [PartitionParam(name, tag) for tag in tags]

        return self._answer(work, [])

    def drop_partition(
        self, collection_name: str, partition_tag: str, timeout: float | None = 30
    ) -> Status:
        """Drop a partition with its entities."""
        name = checks.check_text("collection_name", collection_name)
        tag = checks.check_text("partition_tag", partition_tag)
        collections = self._collections
        return self._do(lambda: collections.drop_partition(collections.find(name), tag))

    def search(
        self,
        collection_name: str,
        top_k: int,
        query_records: Any,
        partition_tags: Sequence[str] | None = None,
        params: dict[str, Any] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Search for the nearest entities of each query.

        Args:
            collection_name: the collection.
            top_k: how many of each, 1 to 16384.
            query_records: vectors, (nq, d).
            partition_tags: the partitions to search; None for all.
            params: the index type's search parameters, such as {'nprobe': 16}; those
                of other types are not looked at. {'recall': 0.99} works, too.
            timeout: not needed.
            kwargs: `_async=True` returns a Future; `_callback` gets status and result.

        Returns:
            Status and TopKQueryResult; where the status is not OK an empty list, and
            None from a Future.
        """
        name = checks.check_text("collection_name", collection_name)
        wanted = checks.check_int("top_k", top_k)
        tags = checks.check_tags("partition_tags", partition_tags)
        given = checks.check_params(params)
        queries = _checked(lambda: checks.check_records("query_records", query_records))

        def work() -> TopKQueryResult:
            found = self._collections.find(name)
            checks.check_top_k(wanted)
            return self._collections.search(found, queries(), wanted, given, tags)

        return self._answer_or_later(work, kwargs, otherwise=[])

    def search_in_segment(
        self,
        collection_name: str,
        file_ids: Sequence[str],
        query_records: Any,
        top_k: int,
        params: dict[str, Any] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Search some segments, which are partitions here; see `search`."""
        return self.search(
            collection_name, top_k, query_records, file_ids, params, timeout, **kwargs
        )

    def flush(
        self,
        collection_name_array: Sequence[str] | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Do nothing for collections that are there: every insert is durable."""
        names = checks.check_tags("collection_name_array", collection_name_array)

        def work() -> None:
            for name in names or ():
                self._collections.find(name)

        return self._do_or_later(work, kwargs)

    def compact(
        self, collection_name: str, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """Drop deleted entities from the index, and index new ones."""
        name = checks.check_text("collection_name", collection_name)
        collections = self._collections

        def work() -> None:
            collections.compact(collections.find(name))

        return self._do_or_later(work, kwargs)

    def _require(self, collection_name: str, tags: Sequence[str] | None) -> Status:
        name = checks.check_text("collection_name", collection_name)
        checks.check_tags("partition_tags", tags)
        return self._do(lambda: self._collections.find(name))

    def _answer(
        self, work: Callable[[], Answer], otherwise: Any = None
    ) -> tuple[Status, Any]:
        """Return status and what the work returns, `otherwise` where it is refused."""
        self._require_open()
        return self._run(work, otherwise)

    def _do(self, work: Callable[[], object]) -> Status:
        status, _ = self._answer(work)
        return status

    def _answer_or_later(
        self,
        work: Callable[[], Answer],
        options: Mapping[str, Any],
        otherwise: Any = None,
        later: Any = None,
    ) -> Any:
        """Return status and answer; with `_async`, a Future of them.

        Where it is refused, the answer is `otherwise`, or `later` of a Future.
        """
        if not options.get("_async"):
            return self._answer(work, otherwise)
        return self._submit(lambda: self._run(work, later), options)

    def _do_or_later(
        self, work: Callable[[], object], options: Mapping[str, Any]
    ) -> Any:
        """Return the status; with `_async`, a Future of it."""
        if not options.get("_async"):
            return self._do(work)
        return self._submit(lambda: self._run(work, None)[0], options)

    def _submit(self, call: Callable[[], Any], options: Mapping[str, Any]) -> Future:
        future = Future(call, options.get("_callback"))
        with self._worker_lock:
            self._require_open()
            if self._worker is None:
                self._worker = ThreadPoolExecutor(
                    1, "duckvec-milvus", initializer=self._know_worker
                )
            self._worker.submit(future.run)
        return future

    def _know_worker(self) -> None:
        self._worker_thread = threading.get_ident()

    def _require_open(self) -> None:
        """Refuse a call to a closed client; those that it took before may go on."""
        if self._closed:
            raise _is_closed()

    def _run(self, work: Callable[[], Answer], otherwise: Any) -> tuple[Status, Any]:
        with self._lock:
            if self._con is None:
                raise _is_closed()  # while this call waited
            try:
                return Status(), work()
            except Refused as refused:
                return refused.status, otherwise
            except (duckdb.Error, VectorIndexError) as error:
                line = without_kind(error).partition("\n")[0]
                return Status(Status.UNEXPECTED_ERROR, line), otherwise


def _is_closed() -> NotConnectError:
    return NotConnectError("this client is closed; make a new one")


def _checked(check: Callable[[], Answer]) -> Callable[[], Answer]:
    """Check at once; return what gives the value, or refuses it as a status.

    Wrong types raise where the call is made, as `_async` calls do in the published
    client, too.
    """
    try:
        value = check()
    except Refused as refused:
        status = refused.status

        def refuse() -> Answer:
            raise Refused(status.code, status.message)

        return refuse
    return lambda: value


def _no_config() -> None:
    raise Refused(
        Status.ILLEGAL_ARGUMENT,
        "There is no server to configure; DuckDB's settings are SET by SQL.",
    )
