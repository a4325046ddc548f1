//! What every transport owes: one suite, run over QUIC, over HTTP and over streams in memory, which
//! a program could have brought along.

mod carrier;
#[cfg(feature = "http")]
mod doors;
#[cfg(feature = "http")]
mod http;
mod link;
#[cfg(feature = "http")]
mod members;
mod memory;
mod places;
mod pulls;
mod pushes;
mod streams;
mod throttled;

/// What carries the client's protocol in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Quic,
    #[cfg(feature = "http")]
    Http,
    Memory,
}

/// Each test, over each transport.
macro_rules! over_each {
    ($($test:ident),* $(,)?) => {
        over_each!(as quic Quic, $($test),*);
        #[cfg(feature = "http")]
        over_each!(as http Http, $($test),*);
        over_each!(as memory Memory, $($test),*);
    };
    (as $name:ident $kind:ident, $($test:ident),*) => {
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(crate::transports::Kind::$kind).await;
                }
            )*
        }
    };
}
use over_each;
