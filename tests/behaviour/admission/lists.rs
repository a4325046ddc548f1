//! Topics for everybody, for listed peers, and for members only; reading without pushing, and
//! pushing without reading.

use futures_util::StreamExt;
use quorate::{
    PeerId,
    sync::{
        Admission, Denied, MemberFault, PeerState, PullStatus, PushOutcome, PushStatus, Rights, Who,
    },
};

use super::ground::{
    Client, Friend, LINE, Writer, group, held, holds, open, shutdown, topic, until,
};
use crate::cluster::within;

fn denied(error: Option<&quorate::sync::MemberError>) -> Option<Denied> {
    match error.map(|it| &it.fault) {
        Some(MemberFault::Denied { why, .. }) => Some(*why),
        _ => None,
    }
}

pub(crate) async fn pull_is_denied(client: &Client, why: Denied) {
    let puller = client.pulls();
    let wanted = |it: &PullStatus| denied(it.last_error.as_ref()) == Some(why);
    let mut watch = puller.handle().watch_status();
    within("the refusal", watch.wait_for(wanted))
        .await
        .expect("it goes on");
}

async fn push_is_denied(client: &Client, why: Denied) {
    let pusher = client.pushes(vec![Writer::new(9).next()]);
    let wanted = |it: &PushStatus| denied(it.last_error.as_ref()) == Some(why);
    let mut watch = pusher.handle().watch_status();
    within("the refusal", watch.wait_for(wanted))
        .await
        .expect("it goes on");
}

async fn pulls_all(client: &Client, count: usize) {
    let pulled = client.pulls().take(count).collect::<Vec<_>>();
    assert_eq!(within("the operations", pulled).await.len(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_opened_for_members_is_served_to_nobody_else() {
    let members = group(1).await;
    let opening = members[0].logs.open_topic(topic(), LINE);
    within("the topic opens", opening).await.expect("opened");
    let mut ada = Writer::new(1);
    ada.write(&members[0].logs, 20).await;
    let friend = Friend::new().await;
    friend.meets(&members[0]);
    let client = Client::of(&members[0], 3);
    until("the friend is turned away", async || {
        friend.last_error(&members[0]).is_some()
    })
    .await;
    // A client of ours is closed before it says what it wants, as at a door with nothing behind.
    let puller = client.pulls();
    let mut watch = puller.handle().watch_status();
    within("it fails", watch.wait_for(|it| it.failures >= 2))
        .await
        .expect("it goes on");
    assert_eq!(held(&friend.logs, &ada).await, 0);
    let status = members[0].sync.status();
    assert!(
        status.peers.is_empty(),
        "strangers cost no place: {status:?}"
    );

    // And then for everybody, and then again for members only.
    open(&members[0], Admission::everyone()).await;
    holds(&friend.logs, &ada, 20).await;
    pulls_all(&client, 20).await;
    let withdrawing = members[0].outsiders.withdraw(topic());
    within("the topic is withdrawn", withdrawing)
        .await
        .expect("withdrawn");
    let admitted = members[0].outsiders.admission(topic()).await;
    assert_eq!(admitted.expect("it reads"), None);
    until("nobody is served", async || {
        members[0].sync.status().sessions == 0
    })
    .await;
    ada.write(&members[0].logs, 1).await;
    let puller = client.pulls();
    let mut watch = puller.handle().watch_status();
    within("it fails", watch.wait_for(|it| it.failures >= 2))
        .await
        .expect("it goes on");
    assert_eq!(held(&friend.logs, &ada).await, 20);
    friend.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_peers_read_and_push_and_others_do_not() {
    let members = group(3).await;
    let (friend, stranger) = (Friend::new().await, Friend::new().await);
    let (reader, other) = (Client::of(&members[1], 3), Client::of(&members[1], 4));
    let admission = Admission {
        read: Who::peers([friend.id(), reader.id()]),
        push: Who::peers([friend.id(), other.id()]),
        ..Admission::everyone()
    };
    open(&members[0], admission.clone()).await;
    for member in &members {
        let known = async || {
            let admitted = member.outsiders.admission(topic()).await;
            admitted.expect("it reads") == Some(admission.clone())
        };
        until("all members know", known).await;
    }
    let (mut ada, mut ben, mut eve) = (Writer::new(1), Writer::new(2), Writer::new(3));
    ada.write(&members[0].logs, 50).await;
    ben.write(&friend.logs, 30).await;
    eve.write(&stranger.logs, 10).await;
    friend.meets(&members[1]);
    stranger.meets(&members[1]);
    holds(&friend.logs, &ada, 50).await;
    holds(&members[0].logs, &ben, 30).await;
    pulls_all(&reader, 80).await;
    pull_is_denied(&other, Denied::UnknownTopic).await;
    push_is_denied(&reader, Denied::UnknownTopic).await;
    let mut pusher = other.pushes(vec![Writer::new(7).next()]);
    let pushed = within("the push", pusher.next()).await;
    let taken = pushed.map(|it| it.outcome);
    assert!(
        matches!(taken, Some(PushOutcome::Appended { .. })),
        "{taken:?}"
    );
    until("the stranger was turned away", async || {
        stranger.last_error(&members[1]).is_some()
    })
    .await;
    assert_eq!(held(&members[0].logs, &eve).await, 0);
    assert_eq!(held(&stranger.logs, &ada).await, 0);
    assert!(members[1].status_of(stranger.id()).is_none());

    // Listed later, it gets and gives everything.
    let both = Admission::peers([friend.id(), stranger.id()]);
    open(&members[2], both).await;
    holds(&members[0].logs, &eve, 10).await;
    holds(&stranger.logs, &ada, 50).await;
    friend.stop().await;
    stranger.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_read_and_not_push_stays_live_and_nothing_of_it_is_taken() {
    let members = group(1).await;
    let friend = Friend::new().await;
    let admission = Admission {
        push: Who::nobody(),
        ..Admission::everyone()
    };
    open(&members[0], admission).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    ada.write(&members[0].logs, 20).await;
    ben.write(&friend.logs, 15).await;
    friend.meets(&members[0]);
    holds(&friend.logs, &ada, 20).await;
    let live = async || {
        let status = members[0].status_of(friend.id());
        status.is_some_and(|it| it.state == PeerState::Live)
    };
    until("it is live", live).await;
    // What is new goes to it, and what is new there is not taken, again and again.
    for round in 1..=5 {
        ada.write(&members[0].logs, 1).await;
        holds(&friend.logs, &ada, 20 + round).await;
        ben.write(&friend.logs, 1).await;
    }
    until("it is said", async || {
        let status = members[0].status_of(friend.id());
        status.is_some_and(|it| it.refused > 0)
    })
    .await;
    assert_eq!(held(&members[0].logs, &ben).await, 0);
    let status = members[0].status_of(friend.id()).expect("it is known");
    assert_eq!((status.appended, status.rights), (0, Rights::READ));
    // It is not sent for ever: a few sessions may have begun before the echo, no more.
    assert!(status.refused <= 20 * 4, "{status:?}");

    // Let in, it is heard at once: the echo was nobody's word about what is held.
    open(&members[0], Admission::everyone()).await;
    holds(&members[0].logs, &ben, 20).await;
    friend.stop().await;
    shutdown(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_push_and_not_read_is_heard_and_learns_nothing() {
    let members = group(1).await;
    let friend = Friend::new().await;
    let admission = Admission {
        read: Who::peers([PeerId::from_bytes([1; 32])]),
        push: Who::Everyone,
        ..Admission::everyone()
    };
    open(&members[0], admission).await;
    let (mut ada, mut ben) = (Writer::new(1), Writer::new(2));
    ada.write(&members[0].logs, 20).await;
    ben.write(&friend.logs, 300).await;
    friend.meets(&members[0]);
    holds(&members[0].logs, &ben, 300).await;
    ben.write(&friend.logs, 10).await;
    holds(&members[0].logs, &ben, 310).await;
    ada.write(&members[0].logs, 1).await;
    ben.write(&friend.logs, 1).await;
    holds(&members[0].logs, &ben, 311).await;
    assert_eq!(held(&friend.logs, &ada).await, 0);
    let status = members[0].status_of(friend.id()).expect("it is known");
    assert_eq!(status.sent, 0, "{status:?}");
    // Nor does it believe that something is missing, or was refused.
    let peers = friend.sync.status().peers;
    let about = peers.iter().find(|it| it.peer == members[0].sync.id());
    assert_eq!(about.and_then(|it| it.last_error.clone()), None);
    friend.stop().await;
    shutdown(members).await;
}
