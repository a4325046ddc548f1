//! Frames over any byte stream: whole ones in, whole ones out, within limits of size and time.
//!
//! A slow link is no fault: what counts is that something moves. A frame fails when nothing of it
//! has moved for as long as the caller allows, or when all of it comes slower than [`SLOWEST`].

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout},
};

use super::{
    super::codec::{FrameFault, Frames},
    frames::{Frame, Opening, frames},
};

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;
/// The slowest stream that is kept, in bytes a second: what 64 kbit/s carry. Whoever is slower on
/// purpose holds a session with a frame of 9 MiB for 20 minutes, and not for ever.
pub(crate) const SLOWEST: u64 = 8 * 1024;

/// How long so many bytes need on the slowest stream.
pub(crate) fn at_slowest(bytes: usize) -> Duration {
    Duration::from_millis((bytes as u64).saturating_mul(1_000) / SLOWEST)
}

/// How one frame comes along.
struct Progress {
    since: Instant,
    moved: usize,
    still_max: Duration,
}

impl Progress {
    /// Nothing may move for so long at the most.
    fn new(still_max: Duration) -> Self {
        Self {
            since: Instant::now(),
            moved: 0,
            still_max,
        }
    }

    /// Lets some more of it move: so many bytes.
    async fn of(&mut self, moving: impl Future<Output = io::Result<usize>>) -> StreamResult<usize> {
        let in_all = self.still_max.saturating_add(at_slowest(self.moved));
        let left = in_all.saturating_sub(self.since.elapsed());
        let after = self.still_max;
        let moved = timeout(left.min(after), moving).await;
        let moved = moved.map_err(|_| StreamFault::Still { after })??;
        self.moved += moved;
        Ok(moved)
    }
}

type StreamResult<T> = Result<T, StreamFault>;

/// The reading half.
///
/// # Invariants
/// - Holds at most one frame and what one read brought, and what [`FrameReader::broken`] may take.
pub(crate) struct FrameReader<R> {
    read: R,
    cut: Frames,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Takes frames of at most so many bytes.
    pub(crate) fn new(read: R, limit: usize) -> Self {
        Self {
            read,
            cut: frames(limit),
            buffer: BytesMut::new(),
        }
    }

    /// From the next frame on, takes frames of up to so many bytes.
    pub(crate) fn limit(&mut self, limit: usize) {
        self.cut.limit(limit);
    }

    /// What the first frame is, as soon as that is known: little more was read of it then. To be
    /// asked before anything else. Cancel-safe, as [`FrameReader::next_within`].
    pub(crate) async fn opening(&mut self, still_max: Duration) -> StreamResult<Opening> {
        let mut progress = Progress::new(still_max);
        loop {
            let opening = Opening::of(&self.buffer);
            if opening != Opening::More {
                return Ok(opening);
            }
            self.buffer.reserve(READ_BYTES);
            if progress.of(self.read.read_buf(&mut self.buffer)).await? == 0 {
                return Ok(opening);
            }
        }
    }

    /// The next frame without its length; `None` at the end of the stream. It may take as long as
    /// it likes. Cancel-safe.
    pub(crate) async fn next(&mut self) -> StreamResult<Option<Bytes>> {
        self.next_within(Duration::MAX).await
    }

    /// The same, while something comes all the time: nothing for so long at the most. Cancel-safe,
    /// but then the time counts anew.
    pub(crate) async fn next_within(&mut self, still_max: Duration) -> StreamResult<Option<Bytes>> {
        let mut progress = Progress::new(still_max);
        loop {
            if let Some(frame) = self.cut.next().map_err(FrameFault::from)? {
                return Ok(Some(frame));
            }
            if !self.buffer.is_empty() {
                // What was taken in before.
                self.cut.push(self.buffer.split().freeze());
                continue;
            }
            self.buffer.reserve(READ_BYTES);
            if progress.of(self.read.read_buf(&mut self.buffer)).await? == 0 {
                return match self.cut.held() {
                    0 => Ok(None),
                    _ => Err(StreamFault::CutOff),
                };
            }
            self.cut.push(self.buffer.split().freeze());
        }
    }

    /// How many bytes of a frame that has not come whole are here.
    pub(crate) fn held(&self) -> usize {
        self.cut.held() + self.buffer.len()
    }

    /// Takes in what comes while no frame is wanted, so that it is seen when the stream breaks, and
    /// is ready then alone. Holds up to so many bytes for later; what is beyond stays where it is.
    /// Cancel-safe.
    pub(crate) async fn broken(&mut self, room: usize) -> StreamFault {
        while self.held() < room {
            self.buffer.reserve(READ_BYTES);
            match self.read.read_buf(&mut self.buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(why) => return StreamFault::Broken(why),
            }
        }
        // A clean end is no farewell: it may wait for answers.
        std::future::pending().await
    }

    /// The next frame, read, as [`FrameReader::next_within`].
    pub(crate) async fn next_frame(&mut self, still_max: Duration) -> StreamResult<Option<Frame>> {
        match self.next_within(still_max).await? {
            Some(bytes) => Ok(Some(Frame::decode(&bytes)?)),
            None => Ok(None),
        }
    }
}

/// Writes a frame, whole, while the other end takes some all the time: nothing for so long at the
/// most. Not cancel-safe.
pub(crate) async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut frame: &[u8],
    still_max: Duration,
) -> StreamResult<()> {
    let mut progress = Progress::new(still_max);
    while !frame.is_empty() {
        match progress.of(to.write(frame)).await? {
            0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            taken => frame = frame.split_at(taken).1,
        }
    }
    let flushed = async { to.flush().await.map(|()| 0) };
    progress.of(flushed).await.map(drop)
}

/// A stream that gives no more frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamFault {
    #[error("the stream broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the stream ended within a message")]
    CutOff,
    #[error("nothing moved for {}s, or too little", after.as_secs_f32())]
    Still { after: Duration },
    #[error(transparent)]
    Wire(#[from] FrameFault),
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::{
        io::{ReadBuf, duplex},
        time::sleep,
    };

    use super::*;

    const STILL: Duration = Duration::from_millis(500);
    const FRAME: usize = 64 * 1024;

    fn frame() -> Vec<u8> {
        let length = (FRAME as u32).to_be_bytes();
        length.into_iter().chain([7; FRAME]).collect()
    }

    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    /// So many bytes at a time, fifty times a second.
    async fn moves(mut stream: impl AsyncRead + AsyncWrite + Unpin, at_once: usize, reads: bool) {
        let sent = frame();
        let mut buffer = vec![0; at_once];
        for part in sent.chunks(at_once) {
            let moved = match reads {
                true => stream.read(&mut buffer).await,
                false => stream.write(part).await,
            };
            if moved.is_err() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending().await
    }

    /// What becomes of a frame that is read, or written, while the other end moves so many bytes at
    /// a time; and after how long.
    async fn fate(at_once: usize, reads: bool) -> (StreamResult<()>, Duration) {
        let (near, far) = duplex(1_024);
        let begun = Instant::now();
        let here = async {
            match reads {
                true => {
                    let mut reader = FrameReader::new(near, FRAME);
                    let read = reader.next_within(STILL).await;
                    read.map(|it| assert_eq!(it.map_or(0, |it| it.len()), FRAME))
                }
                false => {
                    let mut near = near;
                    write(&mut near, &frame(), STILL).await
                }
            }
        };
        let ended = tokio::select! {
            ended = here => ended,
            () = moves(far, at_once, !reads) => unreachable!("it stays"),
        };
        (ended, begun.elapsed())
    }

    #[tokio::test]
    async fn what_moves_may_take_longer_than_silence() {
        for reads in [true, false] {
            let (ended, took) = fate(1_024, reads).await;
            assert!(ended.is_ok(), "{ended:?}");
            assert!(took > 2 * STILL, "{took:?}");
        }
    }

    #[tokio::test]
    async fn what_hardly_moves_is_cut_off() {
        for reads in [true, false] {
            let (ended, took) = fate(1, reads).await;
            assert!(matches!(ended, Err(StreamFault::Still { .. })), "{ended:?}");
            assert!(took < 20 * STILL, "{took:?}");
        }
    }

    #[tokio::test]
    async fn what_was_taken_in_ahead_comes_first_and_a_broken_stream_is_seen() {
        let (near, mut far) = duplex(1_024);
        let mut reader = FrameReader::new(near, FRAME);
        far.write_all(&[0, 0, 0, 2, 1])
            .await
            .expect("there is room");
        let ahead = timeout(STILL, reader.broken(FRAME)).await;
        assert!(ahead.is_err(), "it is whole");
        far.write_all(&[2, 0, 0, 0, 1, 3])
            .await
            .expect("there is room");
        drop(far);
        let ahead = timeout(STILL, reader.broken(FRAME)).await;
        assert!(ahead.is_err(), "a clean end is none");
        for frame in [&[1, 2][..], &[3]] {
            let next = reader.next().await.expect("it is whole");
            assert_eq!(next.as_deref(), Some(frame));
        }
        assert!(matches!(reader.next().await, Ok(None)));

        let (near, mut far) = duplex(1_024);
        let mut reader = FrameReader::new(near, FRAME);
        let three = [0, 0, 0, 1, 7].repeat(3);
        far.write_all(&three).await.expect("there is room");
        reader.next().await.expect("it is whole");
        far.write_all(&three).await.expect("there is room");
        let ahead = timeout(STILL, reader.broken(8)).await;
        assert!(ahead.is_err(), "it is whole");
        assert_eq!(reader.held(), 10, "what is here already counts");

        let mut reader = FrameReader::new(Broken, FRAME);
        let why = timeout(STILL, reader.broken(FRAME)).await;
        assert!(matches!(why, Ok(StreamFault::Broken(_))), "{why:?}");
    }
}
