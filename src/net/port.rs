//! Listening where one has listened before.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Binds to a port of the last time, and goes on trying for so long: a former socket of this very
/// process may be about to close.
///
/// # Errors
/// The last of what `bind` said.
pub(crate) async fn at_former_port<T, E, F>(
    within: Duration,
    mut bind: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let give_up = Instant::now() + within;
    loop {
        match bind().await {
            Err(_) if Instant::now() < give_up => sleep(within / 50).await,
            bound => return bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_given_back_is_taken_and_one_that_is_not_is_given_up() {
        let mut left = 3;
        let bound = at_former_port(Duration::from_secs(20), || {
            left -= 1;
            std::future::ready(if left == 0 { Ok(()) } else { Err(left) })
        });
        assert_eq!(bound.await, Ok(()));
        let taken = at_former_port(Duration::from_millis(5), || {
            std::future::ready(Err::<(), _>("taken"))
        });
        assert_eq!(taken.await, Err("taken"));
    }
}
