//! The member that serves a stock node is lost while the node catches up, and another goes on.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use quorate::log_store::Line;

use crate::{
    child::Child,
    mint::Mint,
    peer::Group,
    stock::{Height, Seen, Stock},
};

/// How soon the next chunk is with the node, to its last operation: a member that does not answer
/// is replaced after 0.42 s, by the settings for a LAN. On a machine that is busy with other things
/// some may be late, by so much.
const TAKEOVER: Duration = Duration::from_secs(2);
const TAKEOVER_MAX: Duration = Duration::from_secs(12);
/// The same with a node that nobody can dial: it gives the dead connection up after 10 s, and looks
/// for another member every 5 s.
const TAKEOVER_DIALLING: Duration = Duration::from_secs(20);
/// Operations that may be sent again for each loss: what was on its way in the last chunk, and what
/// the node had not taken in of the one before. Chunks have at most 200 or 500.
fn resent_max(line: Line) -> u64 {
    match line {
        Line::V06 => 2 * 200,
        _ => 2 * 500,
    }
}
/// Operations that the node lacks when a member is lost, more or less.
const LACKS: u32 = 1_500;
/// Between two losses: a node hands everything it takes in to all sessions that it has open, those
/// with a dead member too, and when one of them holds 1,028 operations it waits until it has given
/// the connection up, 10 s after the last it heard.
const RECOVERY: Duration = Duration::from_secs(11);

/// A group whose members are lost: two that only vote, three processes on disk that serve.
struct Ground {
    group: Group,
    children: Vec<Child>,
    log: Mint,
    minted: BTreeSet<String>,
}

impl Ground {
    async fn open(line: Line) -> Self {
        let group = Group::of(2, line).await;
        for member in &group.members {
            member.sync.stop().await;
        }
        let mut children = Vec::new();
        for name in ["a", "b", "c"] {
            let directory = group.root.path().join(name);
            children.push(Child::start(&group, Some(&directory)).await);
        }
        Child::voters(&group, 5).await;
        Self {
            log: Mint::new(line, group.topic, 1),
            group,
            children,
            minted: BTreeSet::new(),
        }
    }

    /// Sees to it that the node lacks so many operations, or more.
    async fn lack(&mut self, stock: &Stock, count: u32) {
        let has = stock.look(|it| it.count(self.group.topic));
        let lacks = self.minted.len().saturating_sub(has) as u32;
        self.write(count.saturating_sub(lacks)).await;
    }

    /// Makes the log longer.
    async fn write(&mut self, count: u32) {
        let operations: Vec<_> = (0..count).map(|_| self.log.next(100)).collect();
        let ids = operations.iter().map(|it| it.id().to_string());
        self.minted.extend(ids);
        self.group.append(operations).await;
    }

    /// Which child sent the last chunk that the node was told of, after so many chunks.
    async fn serving(&self, stock: &Stock, after: usize) -> usize {
        let last = |it: &Seen| {
            let last = it.chunks.last()?;
            (it.chunks.len() > after).then(|| last.remote.clone())
        };
        let remote = stock.when("a chunk comes", last).await;
        let mut children = self.children.iter();
        let place = children.position(|it| it.address.starts_with(&remote));
        place.expect("only the processes serve")
    }

    /// How long it took until another member had sent the node a chunk, to the last operation.
    async fn next_chunk(&self, lost: usize, at: Instant, within: Duration) -> Duration {
        loop {
            let others = self.children.iter().enumerate().filter(|it| it.0 != lost);
            if let Some(sent) = others.filter_map(|it| it.1.sent_after(at)).min() {
                return sent.duration_since(at);
            }
            assert!(at.elapsed() < within, "nobody has taken the node over");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The node has everything, and the group has everything once.
    async fn end(self, mut stock: Stock) {
        let topic = self.group.topic;
        assert_eq!(stock.processed(topic, self.minted.len()).await, self.minted);
        let count = self.minted.len() as u64;
        let whole = |it: &Height| (it.highest, it.held) == (count - 1, count);
        let full = |it: &[Height]| it.len() == 1 && it.iter().all(whole);
        stock.heights_when(topic, "it has the log", full).await;
        assert_eq!(self.group.ids().await, self.minted);
        assert_eq!(stock.seen().failed, Vec::<String>::new());
        stock.stop().await;
        for mut child in self.children {
            child.stop().await;
        }
        self.group.end().await;
    }
}

/// Again and again the member that serves is killed, or told to stop, at ever other moments between
/// two chunks; the node knows one member only.
pub(crate) async fn lose_the_serving_member(line: Line, times: u32, late_max: u32) {
    let bounds = Bounds {
        soon: TAKEOVER,
        late_max,
        end: TAKEOVER_MAX,
    };
    lose(line, times, bounds, 0).await;
}

/// The same where the node can dial, at its port, and nobody can dial it.
pub(crate) async fn lose_the_member_that_a_node_dialled(line: Line, times: u32, port: u16) {
    let bounds = Bounds {
        soon: TAKEOVER_DIALLING,
        late_max: 0,
        end: TAKEOVER_DIALLING,
    };
    lose(line, times, bounds, port).await;
}

/// How soon another member goes on.
struct Bounds {
    soon: Duration,
    /// How many losses may take longer, and how long these may take.
    late_max: u32,
    end: Duration,
}

async fn lose(line: Line, times: u32, bounds: Bounds, port: u16) {
    let mut ground = Ground::open(line).await;
    let mut options = ground.group.options("reader");
    options.peers = vec![ground.children[0].address.clone()];
    options.port = port;
    let mut stock = Stock::start(&options).await;
    stock.subscribe(ground.group.topic).await;
    let (mut all, mut longest, mut late, mut counted) = (Duration::ZERO, Duration::ZERO, 0, 0);
    for time in 0..times {
        let chunks = stock.look(|it| it.chunks.len());
        ground.lack(&stock, LACKS).await;
        ground.serving(&stock, chunks).await;
        tokio::time::sleep(Duration::from_millis(u64::from(time * 37 % 50) * 10)).await;
        let serving = ground.serving(&stock, 0).await;
        let child = &mut ground.children[serving];
        let lost = Instant::now();
        let how = match time % 3 {
            2 => {
                child.stop().await;
                "stopped"
            }
            _ => {
                child.kill().await;
                "killed"
            }
        };
        counted += child.resent();
        ground.lack(&stock, LACKS / 3).await;
        let took = ground.next_chunk(serving, lost, bounds.end).await;
        // It says so behind what it has still to take in.
        let address = ground.children[serving].address.clone();
        let announced = |it: &Seen| it.chunk_after(lost, &address).cloned();
        let announced = stock.when("the next chunk is announced", announced).await;
        println!(
            "{line}: {how}, loss {time}: {} are there after {took:?}, it says so after {:?}",
            announced.operations,
            announced.at.duration_since(lost)
        );
        late += u32::from(took >= bounds.soon);
        (all, longest) = (all + took, longest.max(took));
        ground.children[serving].come_back(&ground.group).await;
        tokio::time::sleep_until((lost + RECOVERY).into()).await;
    }
    let topic = ground.group.topic;
    stock.processed(topic, ground.minted.len()).await;
    let (total, received) = (ground.minted.len() as u64, stock.look(Seen::received));
    let resent = received.saturating_sub(total);
    counted += ground.children.iter().map(Child::resent).sum::<u64>();
    println!(
        "{line}: {times} losses, next chunk after {:?} in the mean, {longest:?} at most, \
         {late} late; \
         {total} operations, {resent} sent again, {counted} counted",
        all / times
    );
    let Bounds { soon, late_max, .. } = bounds;
    assert!(late <= late_max, "{late} took longer than {soon:?}");
    assert!(
        resent <= u64::from(times) * resent_max(line),
        "{resent} were sent again"
    );
    assert!(
        counted >= resent,
        "{resent} were sent again, {counted} counted"
    );
    ground.end(stock).await;
}
