//! Frames over a QUIC stream.

use bytes::Bytes;

use super::frame::{Decoder, Frame, FrameError, Kind};
use super::messages::{Message, MessageError};

/// Chunks taken from QUIC at once: a burst of datagrams as the kernel hands them over.
const CHUNKS_MAX: usize = 32;

/// Why no further frame could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFrameError {
    /// The bytes are no frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame is no message, or not the one that may come.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The stream or the connection is gone.
    #[error(transparent)]
    Stream(#[from] quinn::ReadError),
    /// The stream ended before the frame that was waited for.
    #[error("the stream ended where a frame was expected")]
    End,
}

/// The receiving half of a stream.
pub(super) struct FrameReader {
    recv: quinn::RecvStream,
    decoder: Decoder,
    /// Whether records may come.
    records: bool,
}

impl FrameReader {
    /// A reader of control frames: a record is refused by its header, before anything of it is kept.
    pub(super) fn new(recv: quinn::RecvStream) -> Self {
        Self { recv, decoder: Decoder::new(), records: false }
    }

    /// From here on records may come.
    pub(super) const fn take_records(&mut self) {
        self.records = true;
    }

    /// The next frame, or `None` at the end of the stream. Nothing is lost if the future is dropped.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            if !self.records && self.decoder.due() == Some(Kind::Record) {
                return Err(MessageError::Unexpected { found: Kind::Record, expected: "a control frame" }.into());
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS_MAX];
            match self.recv.read_chunks(&mut chunks).await? {
                Some(count) => chunks.into_iter().take(count).for_each(|chunk| self.decoder.push(chunk)),
                None => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }

    /// The next frame as a message.
    pub(super) async fn next_message(&mut self) -> Result<Message, ReadFrameError> {
        let frame = self.next_frame().await?.ok_or(ReadFrameError::End)?;
        Ok(Message::decode(frame)?)
    }

    /// Tells the sender to stop.
    pub(super) fn stop(&mut self, code: super::Code) {
        // A stream that is over already needs no stop.
        let _ = self.recv.stop(code.var_int());
    }
}

/// Writes one message.
pub(super) async fn write_message(send: &mut quinn::SendStream, message: &Message) -> Result<(), quinn::WriteError> {
    send.write_chunk(message.encode()).await
}
