//! The way in, as far as it goes without a group: order, claims, what is under way.

#[path = "tests/gone.rs"]
mod gone;

use super::{flight::Outcomes, *};
use crate::{
    log_store::{Line, mint::Writer},
    machine::StateMachine,
};

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

/// Nothing that the group refuses for sure is proposed to it.
#[tokio::test]
async fn a_new_author_of_a_full_topic_is_refused_before_it_is_proposed() {
    let topic = Topic::named("cats");
    let mut store = LogStore::new();
    let at = crate::machine::Position {
        term: 1,
        index: 1,
        offset: 0,
    };
    let line = Line::V07;
    store.apply(at, LogCommand::OpenTopic { topic, line });
    let (mut known, mut stranger) = (writer(1), writer(2));
    let first = known.next("a");
    let operations = vec![RawOperation {
        header: first.header().clone(),
        body: first.body().cloned(),
    }];
    store.apply(at, LogCommand::Append { topic, operations });
    let fates = async |store: &LogStore, operations: Vec<Operation>| {
        let in_flight = Arc::<InFlight>::default();
        let room = in_flight.room(&operations, true).await.expect("there is");
        let chunk = Chunk::cut(operations, topic, usize::MAX, in_flight, room);
        let chunk = check(chunk, &store.view().table, topic).expect("it is readable");
        let told = |fate: &Fate| match fate {
            Fate::Known(outcome) => Some(outcome.clone()),
            Fate::Ours | Fate::Theirs(_) => None,
        };
        chunk.fates.iter().map(told).collect::<Vec<_>>()
    };
    let operations = vec![first, known.next("b"), stranger.next("a")];
    let held = Some(Outcome::Held { number: 0 });
    let told = fates(&store, operations.clone()).await;
    assert_eq!(told, [held.clone(), None, None]);
    store.fill_with_authors(topic);
    let refused = Some(Outcome::Refused(ChainRefused::TooManyAuthors.into()));
    let told = fates(&store, operations).await;
    assert_eq!(told, [held, None, refused]);
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
