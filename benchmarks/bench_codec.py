"""Raw chunks: five seconds of two photodiodes as they are stored."""

from stirbar.core import raw_codec
from stirbar.core.bench import worker_config
from stirbar.core.bench_virtual import trace_chunks
from stirbar.core.records import TRACE


class Codec:
    def setup_cache(self):
        return trace_chunks(worker_config(), 10)[0]

    def setup(self, chunk):
        self.items = len(chunk) // TRACE.size
        self.encoded = raw_codec.encode(chunk)

    def time_encode(self, chunk):
        raw_codec.encode(chunk)

    def time_decode(self, chunk):
        raw_codec.decode(self.encoded)

    def track_bytes_per_item(self, chunk):
        return len(self.encoded) / self.items
