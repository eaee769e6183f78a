#!/usr/bin/env bash
# s3fs and pyarrow: a writer that fails in the middle leaves a complete object, for parquet a valid one with fewer rows.
#
# Versions: s3fs 2026.9.0, pyarrow 25.0.1, smart-open 9.0.2, against moto 5.2.5
# Guess:    an upload that ends with an exception is aborted, and the object that was there before stays.
# Seen:     leaving `with fs.open("s3://...", "w")` by an exception closes the file, and closing publishes what was written so far, over the
#           older object. With pyarrow.parquet.ParquetWriter in a `with` the footer is written too: the object opens and has 3 of 5 rows.
#           pyarrow's S3FileSystem does the same. smart_open aborts the upload, and the older object stays.
# Effect:   whoever checks that the object exists, or opens, takes half a data set for a whole one. Write to a local file and upload it, and
#           upload a manifest last, as Talaria does.
source "$(dirname "$0")/install.sh" s3fs==2026.9.0 pyarrow==25.0.1 'moto[server]==5.2.5' 'smart-open[s3]==9.0.2'
py - <<'PY'
import logging

import boto3
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import s3fs
import smart_open
from moto.server import ThreadedMotoServer

logging.disable(logging.WARNING)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
host, port = server.get_host_and_port()
address, keys = f"http://{host}:{port}", {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
client.create_bucket(Bucket="store")
s3 = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=address)
arrow = pyarrow.fs.S3FileSystem(access_key="test", secret_key="test", endpoint_override=address, region="us-east-1")
SCHEMA = pa.schema([("row", pa.int64())])


def lines(opened):
    with opened as file:
        for number in range(5):
            if number == 3:
                raise OSError("the source went away")
            file.write(f"{number}\n".encode())


def table(opened):
    with opened as file, pq.ParquetWriter(file, SCHEMA) as writer:
        for number in range(5):
            if number == 3:
                raise OSError("the source went away")
            writer.write_table(pa.table({"row": [number]}))


def left(how, write, opened):
    """What is at the place where an older object was, after a write that failed."""
    client.put_object(Bucket="store", Key="rows", Body=b"the older object")
    try:
        write(opened())
    except OSError as error:
        assert "went away" in str(error), error
    body = client.get_object(Bucket="store", Key="rows")["Body"].read()
    found = pq.read_table(pa.BufferReader(body)).num_rows if write is table and body[:4] == b"PAR1" else body
    print(f"{how}: {found!r}")
    return found


assert left("s3fs, lines", lines, lambda: s3.open("store/rows", "wb")) == b"0\n1\n2\n"
assert left("s3fs, parquet", table, lambda: s3.open("store/rows", "wb")) == 3
assert left("pyarrow, lines", lines, lambda: arrow.open_output_stream("store/rows")) == b"0\n1\n2\n"
assert left("pyarrow, parquet", table, lambda: arrow.open_output_stream("store/rows")) == 3
kept = {"transport_params": {"client": client}}
assert left("smart_open, lines", lines, lambda: smart_open.open("s3://store/rows", "wb", **kept)) == b"the older object"
server.stop()
PY
