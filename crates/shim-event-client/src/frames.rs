//! ttrpc frames as they come from a stream: ten bytes of header, big-endian,
//! and a message of up to 4 MiB.

use std::io;

use tokio::net::UnixStream;
use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader};

use crate::Error;

/// Read at once; most messages are a few hundred bytes.
const CHUNK: usize = 4096;

/// Cuts a stream into frames. Reads no further than the frame that is asked
/// for, so that a peer that floods has to wait, and holds no memory while it
/// waits for one.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    read: Vec<u8>,
    /// Where the next frame starts in it.
    start: usize,
}

impl Frames {
    pub(crate) async fn next(
        &mut self,
        stream: &UnixStream,
    ) -> Result<(MessageHeader, Vec<u8>), Error> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(frame);
            }
            self.read.drain(..self.start);
            self.start = 0;
            if self.read.is_empty() {
                self.read = Vec::new();
            }
            stream.readable().await.map_err(Error::Broken)?;
            self.read.reserve(CHUNK);
            match stream.try_read_buf(&mut self.read) {
                Ok(0) => return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(Error::Broken(error));
                }
                _ => {}
            }
        }
    }

    fn take(&mut self) -> Result<Option<(MessageHeader, Vec<u8>)>, Error> {
        let unread = &self.read[self.start..];
        let Some((header, rest)) = unread.split_first_chunk::<MESSAGE_HEADER_LENGTH>() else {
            return Ok(None);
        };
        let header = MessageHeader::from(header);
        let length = header.length as usize;
        if length > MESSAGE_LENGTH_MAX {
            return Err(Error::Protocol(format!("it sent a message of {length} bytes")));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = message.to_vec();
        self.start += MESSAGE_HEADER_LENGTH + length;
        Ok(Some((header, message)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use ttrpc::proto::MESSAGE_TYPE_DATA;

    use super::*;

    fn frame(stream_id: u32, message: &[u8]) -> Vec<u8> {
        let length = message.len().try_into().unwrap();
        let header = MessageHeader { length, stream_id, type_: MESSAGE_TYPE_DATA, flags: 0 };
        [Vec::from(header), message.to_vec()].concat()
    }

    /// Frames of every size, however they are cut on their way.
    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let messages: Vec<Vec<u8>> =
            [0, 1, 9, 10, 11, CHUNK - 10, CHUNK, 70_000, MESSAGE_LENGTH_MAX]
                .map(|length| (0..=250).cycle().take(length).collect())
                .into();
        for cut in [1_000_003, 4096, 977] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let sent: Vec<u8> = (1..).zip(&messages).flat_map(|(id, m)| frame(id, m)).collect();
            tokio::spawn(async move {
                for piece in sent.chunks(cut) {
                    theirs.write_all(piece).await.unwrap();
                }
            });
            let mut frames = Frames::default();
            for (id, message) in (1..).zip(&messages) {
                let (header, received) = frames.next(&ours).await.unwrap();
                assert_eq!((header.stream_id, header.type_), (id, MESSAGE_TYPE_DATA));
                assert!(received == *message, "message {id} in pieces of {cut}");
            }
            assert!(matches!(frames.next(&ours).await, Err(Error::Broken(_))));
            assert_eq!(frames.read.capacity(), CHUNK, "memory is given back");
        }
    }

    /// No more is read from a peer that floods than was asked for.
    #[tokio::test]
    async fn a_flood_waits_for_the_consumer() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let flood = frame(1, &[0; 100]).repeat(1_000);
        let mut sent = 0;
        let mut frames = Frames::default();
        for _ in 0..1_000 {
            while let Ok(written) = theirs.try_write(&flood) {
                sent += written;
            }
            frames.next(&ours).await.unwrap();
            assert!(frames.read.len() < 3 * CHUNK, "{}", frames.read.len());
        }
        // What the kernel keeps has a bound as well.
        assert!(sent < 10 * flood.len(), "{sent}");
    }

    #[tokio::test]
    async fn an_oversized_message_ends_the_connection() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let length = u32::try_from(MESSAGE_LENGTH_MAX).unwrap() + 1;
        let header = MessageHeader { length, stream_id: 1, type_: MESSAGE_TYPE_DATA, flags: 0 };
        theirs.write_all(&Vec::from(header)).await.unwrap();
        let error = Frames::default().next(&ours).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the shim does not speak ttrpc: it sent a message of 4194305 bytes"
        );
    }
}
