//! Frames over a stream.

use bytes::Bytes;

use super::frame::{Decoder, Frame, FrameError, Kind};
use super::messages::{Message, MessageError};
use super::transport::{RecvHalf, SendHalf, StreamEnd};

/// Chunks taken from a stream at once: a burst of datagrams as the kernel hands them over.
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
    Stream(#[from] StreamEnd),
    /// A record is larger than what may still be sent.
    #[error("a record of {body_bytes} bytes began where {credit_bytes} bytes may be sent")]
    Credit {
        /// The body that its header announces.
        body_bytes: usize,
        /// The credit that is left.
        credit_bytes: u64,
    },
    /// The stream ended before the frame that was waited for.
    #[error("the stream ended where a frame was expected")]
    End,
}

/// The receiving half of a stream.
pub(super) struct FrameReader {
    recv: RecvHalf,
    decoder: Decoder,
}

impl FrameReader {
    /// A reader at the begin of a stream.
    pub(super) fn new(recv: RecvHalf) -> Self {
        Self { recv, decoder: Decoder::new() }
    }

    /// The next control frame, or `None` at the end of the stream. A record is refused by its header, before anything of
    /// it is kept. Nothing is lost if the future is dropped.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        self.next(|| None).await
    }

    /// The next frame, or `None` at the end of the stream. A record for which `credit` bytes are not enough is refused by
    /// its header. Nothing is lost if the future is dropped.
    pub(super) async fn next_frame_within(
        &mut self,
        credit: impl Fn() -> u64,
    ) -> Result<Option<Frame>, ReadFrameError> {
        self.next(|| Some(credit())).await
    }

    /// `credit` is `None` where no record may come.
    async fn next(&mut self, credit: impl Fn() -> Option<u64>) -> Result<Option<Frame>, ReadFrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            if let Some((Kind::Record, body_bytes)) = self.decoder.due() {
                let Some(credit_bytes) = credit() else {
                    return Err(MessageError::Unexpected { found: Kind::Record, expected: "a control frame" }.into());
                };
                if body_bytes as u64 > credit_bytes {
                    return Err(ReadFrameError::Credit { body_bytes, credit_bytes });
                }
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
        self.recv.stop(code);
    }
}

/// Writes one message.
pub(super) async fn write_message(send: &mut SendHalf, message: &Message) -> Result<(), StreamEnd> {
    send.write(message.encode()).await
}
