//! How a connection's socket is set: that an end that has vanished is noticed, and that little
//! waits in the system.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// How long the other end may acknowledge nothing of what was sent, or take nothing more.
pub(super) const GONE_AFTER: Duration = Duration::from_secs(60);
/// Bytes that the system takes beyond what is on its way: what a writer sees of the other end lies
/// no further back, and a stream that nobody reads costs no more.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT: u32 = 128 * 1024;

/// Sets a socket that has just been connected.
pub(super) fn set(stream: &TcpStream, gone_after: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // Where nothing is on its way the system asks, four times in all.
    let asks = (gone_after / 4).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(asks).with_interval(asks);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        socket.set_tcp_user_timeout(Some(gone_after))?;
        socket.set_tcp_notsent_lowat(UNSENT)?;
    }
    Ok(())
}
