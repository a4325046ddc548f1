//! Pulls over each transport: complete, resumed, held back by a slow reader, refused.

use std::time::Duration;

use futures_util::StreamExt;
use quorate::{
    log_store::{Line, Operation, Topic},
    sync::{Denied, Have, LogServerOptions, MemberFault, Pull, PullStatus, Puller, Secret},
};

use super::{
    Kind,
    carrier::{Carrier, addrs, by_author, kept},
    over_each,
};
use crate::client::ground::{Ground, LINE, Writer, append, soon, topic};

over_each!(
    a_pull_is_complete_and_follows,
    a_pull_goes_on_at_another_member_and_doubles_nothing,
    a_reader_that_takes_nothing_holds_the_member_back,
    a_pull_that_is_refused_says_why,
    a_pull_of_once_ends,
    a_restarted_member_is_found_where_it_was,
    as_many_sessions_as_there_may_be_are_served,
);

const BODY: usize = 128 * 1024;
const COUNT: usize = 400;

async fn take(puller: &mut Puller, count: usize) -> Vec<Operation> {
    soon("the operations", puller.take(count).collect()).await
}

async fn a_pull_is_complete_and_follows(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    let all = [ada.many(12_000), ben.many(300)].concat();
    append(&ground.logs[0], &all).await;
    let server = carrier.serve(&ground.logs[0]).await;
    let mut puller = carrier.pull(&[server.addr()], Have::new()).start();
    let taken = take(&mut puller, all.len()).await;
    assert_eq!(by_author(taken), by_author(all));
    for _ in 0..3 {
        let news = [ada.many(3), ben.many(2)].concat();
        append(&ground.logs[0], &news).await;
        let taken = take(&mut puller, news.len()).await;
        assert_eq!(by_author(taken), by_author(news));
    }
    let status = puller.status();
    assert_eq!((status.failures, status.sessions), (0, 1), "{status:?}");
    drop(puller);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_pull_goes_on_at_another_member_and_doubles_nothing(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let mut ada = Writer::new(1);
    // Far more than a client and its sockets hold.
    let all = ada.many_of(COUNT, BODY);
    append(&ground.logs[0], &all).await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(carrier.serve(&ground.logs[0]).await);
    }
    let mut puller = carrier.pull(&addrs(&servers), Have::new()).start();
    let mut taken = Vec::new();
    // Whoever serves is cut in the middle, twice.
    for until in [COUNT / 10, COUNT / 5, COUNT] {
        let lacking = until - taken.len();
        taken.extend(take(&mut puller, lacking).await);
        if servers.len() > 1 {
            let at = |it: &PullStatus| {
                let serving = it.member?;
                servers.iter().position(|it| it.addr().peer() == serving)
            };
            let mut watch = puller.handle().watch_status();
            let status = soon("one serves", watch.wait_for(|it| at(it).is_some())).await;
            let at = status.as_ref().and_then(at).expect("one of ours");
            soon("it closes", servers.remove(at).close()).await;
        }
    }
    assert_eq!(taken, all);
    let news = ada.many(2);
    append(&ground.logs[0], &news).await;
    assert_eq!(take(&mut puller, 2).await, news);
    assert!(puller.status().failures >= 2);
    drop(puller);
    soon("it closes", servers.remove(0).close()).await;
    ground.close().await;
}

async fn a_reader_that_takes_nothing_holds_the_member_back(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let all = Writer::new(1).many_of(COUNT, BODY);
    append(&ground.logs[0], &all).await;
    let server = carrier.serve(&ground.logs[0]).await;
    let mut puller = carrier.pull(&[server.addr()], Have::new()).start();
    let mut taken = take(&mut puller, 1).await;
    let stands_still = async {
        let mut before = u64::MAX;
        while before != carrier.written() {
            before = carrier.written();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        before
    };
    let written = soon("the member waits", stands_still).await;
    let whole = (BODY * COUNT) as u64;
    // What the client may hold, and what the sockets do.
    assert!(written < whole / 2, "{written} of {whole}");
    taken.extend(take(&mut puller, COUNT - 1).await);
    assert_eq!(taken, all);
    drop(puller);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn refusal(pull: Pull) -> MemberFault {
    let mut puller = pull.start();
    let handle = puller.handle();
    let reading = tokio::spawn(async move { puller.next().await });
    let failed = |it: &PullStatus| it.last_error.is_some();
    let status = soon("the refusal", handle.watch_status().wait_for(failed)).await;
    reading.abort();
    status
        .and_then(|it| it.last_error)
        .expect("it failed")
        .fault
}

async fn a_pull_that_is_refused_says_why(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    append(&ground.logs[0], &Writer::new(1).many(10)).await;
    let server = carrier.serve(&ground.logs[0]).await;
    let ticket = carrier.ticket(&[server.addr()]);
    let pull = |topic| Pull::new(&ticket, topic, Have::new()).through(carrier.transports());
    let denied = |fault: MemberFault| match fault {
        MemberFault::Denied { why, .. } => Some(why),
        _ => None,
    };
    let unknown = refusal(pull(Topic::named("dogs"))).await;
    assert_eq!(denied(unknown), Some(Denied::UnknownTopic));
    let members = ticket.members().iter().cloned();
    let topics = [(topic(), Line::V06)];
    let other = quorate::sync::LogTicket::new(ticket.network(), topics, members);
    let other = Pull::new(&other, topic(), Have::new()).through(carrier.transports());
    assert_eq!(denied(refusal(other).await), Some(Denied::OtherLine));
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_pull_of_once_ends(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let all = Writer::new(1).many(1_000);
    append(&ground.logs[0], &all).await;
    let server = carrier.serve(&ground.logs[0]).await;
    for have_count in [0, 999, 1_000] {
        let mut have = Have::new();
        all[..have_count].iter().for_each(|it| have.advance(it));
        let puller = carrier.pull(&[server.addr()], have).once().start();
        let rest: Vec<Operation> = soon("the rest", puller.collect()).await;
        assert_eq!(rest, all[have_count..]);
    }
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn a_restarted_member_is_found_where_it_was(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let mut ada = Writer::new(1);
    append(&ground.logs[0], &ada.many(100)).await;
    let secret = Secret::from([5; 32]);
    let options = LogServerOptions {
        secret: secret.clone(),
        ..LogServerOptions::default()
    };
    let server = carrier.serve_with(&ground.logs[0], options).await;
    let addr = server.addr();
    let name = carrier.name();
    assert_eq!(server.transports()[name], addr.addrs(name));
    let mut puller = carrier.pull(&[server.addr()], Have::new()).start();
    assert_eq!(take(&mut puller, 100).await.len(), 100);
    let again = kept(&server, secret);
    soon("it closes", server.close()).await;
    let server = carrier.serve_with(&ground.logs[0], again).await;
    assert_eq!(server.addr(), addr);
    // The client that was there comes back by itself.
    let news = ada.many(5);
    append(&ground.logs[0], &news).await;
    assert_eq!(take(&mut puller, 5).await, news);
    drop(puller);
    soon("it closes", server.close()).await;
    ground.close().await;
}

async fn as_many_sessions_as_there_may_be_are_served(kind: Kind) {
    let (ground, carrier) = (Ground::open(1).await, Carrier::new(kind));
    let all = Writer::new(1).many(10);
    append(&ground.logs[0], &all).await;
    let options = LogServerOptions {
        sessions_max: 1,
        ..LogServerOptions::default()
    };
    let server = carrier.serve_with(&ground.logs[0], options).await;
    let pull = || {
        let pull = carrier.pull(&[server.addr()], Have::new());
        pull.dial_within(Duration::from_secs(1))
            .silent_after(Duration::from_secs(6))
    };
    let mut first = pull().start();
    assert_eq!(take(&mut first, 10).await, all);
    let fault = refusal(pull()).await;
    let why = Denied::OverQuota;
    let turned_away = matches!(fault, MemberFault::Denied { why: it, .. } if it == why);
    assert!(turned_away, "{fault}");
    drop(first);
    let mut second = pull().start();
    assert_eq!(take(&mut second, 10).await, all);
    assert_eq!(second.status().line, Some(LINE));
    drop(second);
    soon("it closes", server.close()).await;
    ground.close().await;
}
