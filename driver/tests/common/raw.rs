//! Calls by name and bytes, so that one table holds calls of every method, and requests may be what no client would make.
use prost::Message;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

#[derive(Clone, Copy, Debug, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(into, &item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use bytes::Buf;
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// Calls `path`, as `/csi.v1.Controller/CreateVolume`, with an encoded request; a stream is read to its first message.
pub async fn call(channel: &Channel, path: &str, request: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client
        .ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let path = path.parse().unwrap();
    client
        .unary(Request::new(request), path, Bytes)
        .await
        .map(tonic::Response::into_inner)
}

/// One row of a table: what is asked, and the code that must come back.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub path: String,
    pub request: Vec<u8>,
    pub code: tonic::Code,
    /// What the message must contain.
    pub names: String,
}

/// A row of `method` of the Controller service.
pub fn row(name: &str, method: &str, request: &impl Message, code: tonic::Code, names: &str) -> Row {
    Row {
        name: format!("{method}: {name}"),
        path: format!("/csi.v1.Controller/{method}"),
        request: request.encode_to_vec(),
        code,
        names: names.to_owned(),
    }
}

/// Calls every row and compares; all that differ are shown at once.
pub async fn check(channel: &Channel, rows: Vec<Row>) {
    let mut wrong = Vec::new();
    for row in rows {
        match call(channel, &row.path, row.request).await {
            Ok(_) if row.code == tonic::Code::Ok => {}
            Ok(_) => wrong.push(format!("{}: OK, expected {:?}", row.name, row.code)),
            Err(status) => {
                let complete = !status.message().is_empty() && status.details().is_empty();
                if status.code() != row.code || !complete || !status.message().contains(&row.names) {
                    wrong.push(format!(
                        "{}: {:?} {:?}, expected {:?} naming {:?}",
                        row.name,
                        status.code(),
                        status.message(),
                        row.code,
                        row.names
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} rows are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
