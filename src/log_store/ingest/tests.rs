//! The way in, as far as it goes without a group: order, claims, what is under way.

use super::{flight::Outcomes, *};
use crate::log_store::{Line, mint::Writer};

fn writer(number: u8) -> Writer {
    Writer::new(number, Topic::named("cats"), Line::V07)
}

#[test]
fn each_log_is_sorted_in_its_own_places() {
    let (mut one, mut other) = (writer(1), writer(2));
    let [a0, a1, a2] = [one.next("a"), one.next("b"), one.next("c")];
    let [b0, b1] = [other.next("a"), other.next("b")];
    let came = [a2, b0, a0.clone(), b1, a1, a0];
    // Places 0, 2, 4, 5 are the first author's: 0, 0, 1, 2 of them, the first of equals first.
    assert_eq!(in_order(&came), [2, 1, 5, 3, 4, 0]);
}

#[test]
fn a_dropped_claim_lets_go_and_a_landed_one_tells() {
    let in_flight = Arc::<InFlight>::default();
    let operation = writer(1).next("a");
    let mut first = Claims::none(Arc::clone(&in_flight));
    assert!(first.claim(operation.id(), 0).is_none());
    let mut second = Claims::none(Arc::clone(&in_flight));
    assert!(second.claim(operation.id(), 0).is_some());
    drop(second);
    assert_eq!(in_flight.under_way(), 1, "not its own");
    drop(first);
    assert_eq!(in_flight.under_way(), 0);
}

#[tokio::test]
async fn a_flight_tells_what_the_store_holds() {
    let in_flight = Arc::<InFlight>::default();
    let mut writer = writer(1);
    let mut first = Claims::none(Arc::clone(&in_flight));
    let mut second = Claims::none(Arc::clone(&in_flight));
    let mut flights = Vec::new();
    for at in 0..2 {
        let id = writer.next("a").id();
        assert!(first.claim(id, at).is_none());
        flights.push(second.claim(id, at).expect("under way"));
    }
    let refused = Outcome::Refused(ChainRefused::LogFull.into());
    let outcomes: Outcomes = vec![Some(Ok(Outcome::Appended { number: 5 })), Some(Ok(refused))];
    first.land(&outcomes);
    let deadline = Instant::now() + Duration::from_secs(5);
    let told = flights.remove(0).outcome(deadline).await;
    assert_eq!(told, Some(Outcome::Held { number: 5 }));
    assert_eq!(flights.remove(0).outcome(deadline).await, None);
}
