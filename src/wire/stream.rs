//! Frames over a stream.

use super::frame::{Decoder, Due, Frame, FrameError, Kind};
use super::messages::{Message, MessageError};
use super::transport::{RecvHalf, SendHalf, StreamEnd};

/// What room there is for the records of a stream.
pub(super) trait Room {
    /// Bytes that the next record may have at the most; `None` where no record may come.
    fn credit_bytes(&self) -> Option<u64>;

    /// Bytes that may be read ahead of what was taken.
    fn ahead_bytes(&self) -> u64;

    /// Waits until there is memory for the whole of a record that has begun.
    fn wait(&self, due: Due) -> impl Future<Output = ()> + Send;
}

/// Where no record may come.
struct NoRecords;

impl Room for NoRecords {
    fn credit_bytes(&self) -> Option<u64> {
        None
    }

    fn ahead_bytes(&self) -> u64 {
        crate::limits::CONTROL_BODY_BYTES_MAX as u64
    }

    async fn wait(&self, _: Due) {}
}

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
        self.next_frame_within(&NoRecords).await
    }

    /// The next frame, or `None` at the end of the stream. A record above its credit is refused by its header, and of one
    /// that has begun nothing more is read before there is memory for it. Nothing is lost if the future is dropped.
    pub(super) async fn next_frame_within(&mut self, room: &impl Room) -> Result<Option<Frame>, ReadFrameError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                if frame.kind == Kind::Close {
                    return Err(self.closed(frame));
                }
                return Ok(Some(frame));
            }
            let mut have_bytes = 0;
            if let Some(due @ Due { kind: Kind::Record, body_bytes, .. }) = self.decoder.due() {
                let Some(credit_bytes) = room.credit_bytes() else {
                    return Err(MessageError::Unexpected { found: Kind::Record, expected: "a control frame" }.into());
                };
                if body_bytes as u64 > credit_bytes {
                    return Err(ReadFrameError::Credit { body_bytes, credit_bytes });
                }
                room.wait(due).await;
                have_bytes = due.have_bytes as u64;
            }
            let ahead_bytes = room.ahead_bytes().saturating_sub(have_bytes) as usize;
            if !self.recv.read(ahead_bytes, |chunk| self.decoder.push(chunk)).await? {
                self.decoder.finish()?;
                return Ok(None);
            }
        }
    }

    /// The end of a session whose transport knows no other way to say it.
    fn closed(&self, frame: Frame) -> ReadFrameError {
        let unexpected = MessageError::Unexpected { found: frame.kind, expected: "another frame" };
        match Message::decode(frame) {
            Ok(Message::Close(close)) => {
                self.recv.closed(close).map_or_else(|| unexpected.into(), ReadFrameError::Stream)
            }
            Ok(_) => unexpected.into(),
            Err(error) => error.into(),
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
