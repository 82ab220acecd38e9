//! ttrpc frames as Go's server reads and writes them. Written out here rather
//! than taken from the ttrpc crate's server, so that a mistake which that crate
//! makes on both sides shows, and so that faults can be injected.

use std::io;

use protobuf::{Message, MessageField};
use tokio::io::{AsyncRead, AsyncReadExt};
use ttrpc::proto::{
    Code, DEFAULT_PAGE_SIZE, FLAG_NO_DATA, FLAG_REMOTE_CLOSED, MESSAGE_HEADER_LENGTH,
    MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_RESPONSE, MessageHeader, Response, Status,
};

/// What a client sent.
#[derive(Debug)]
pub(super) enum Received {
    Frame(MessageHeader, Vec<u8>),
    /// A message over 4 MiB, which was skipped.
    Oversized(MessageHeader),
    /// The end of the connection.
    End,
}

pub(super) async fn receive(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Received> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    match reader.read_exact(&mut header).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Received::End),
        result => result?,
    };
    let header = MessageHeader::from(header);
    let length = header.length as usize;
    if length > MESSAGE_LENGTH_MAX {
        skip(reader, length).await?;
        return Ok(Received::Oversized(header));
    }
    let mut data = vec![0; length];
    reader.read_exact(&mut data).await?;
    Ok(Received::Frame(header, data))
}

/// Answer of a unary call.
pub(super) fn response(stream: u32, message: &[u8]) -> Vec<u8> {
    let payload = message.to_vec();
    frame(stream, MESSAGE_TYPE_RESPONSE, 0, &encode(&Response { payload, ..Response::default() }))
}

/// End of any call with an error.
pub(super) fn error(stream: u32, code: Code, message: &str) -> Vec<u8> {
    let status = Status { code: code.into(), message: message.into(), ..Status::default() };
    let status = MessageField::some(status);
    frame(stream, MESSAGE_TYPE_RESPONSE, 0, &encode(&Response { status, ..Response::default() }))
}

/// One message of a stream.
pub(super) fn data(stream: u32, message: &[u8]) -> Vec<u8> {
    frame(stream, MESSAGE_TYPE_DATA, 0, message)
}

/// Clean end of a stream.
pub(super) fn end(stream: u32) -> Vec<u8> {
    frame(stream, MESSAGE_TYPE_DATA, FLAG_REMOTE_CLOSED | FLAG_NO_DATA, &[])
}

/// Any frame, for faults: header and data, whether they fit or not.
pub fn frame(stream_id: u32, type_: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::from(MessageHeader { length, stream_id, type_, flags });
    bytes.extend_from_slice(data);
    bytes
}

pub(super) fn encode(message: &impl Message) -> Vec<u8> {
    // Fails only for required fields, which proto3 does not have.
    message.write_to_bytes().unwrap_or_default()
}

async fn skip(reader: &mut (impl AsyncRead + Unpin), mut length: usize) -> io::Result<()> {
    let mut buffer = [0; DEFAULT_PAGE_SIZE];
    while length > 0 {
        let part = length.min(buffer.len());
        reader.read_exact(&mut buffer[..part]).await?;
        length -= part;
    }
    Ok(())
}
