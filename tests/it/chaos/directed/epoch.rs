//! The guarantee between two leaders. The one that takes over terminates the other's connections, so no process gets as
//! far as a stale write: here two of the library's sources and their cursor writes meet on one server. A switch belongs to
//! a process, so they run in one of their own: this test binary, started once more.

use std::process::Stdio;
use std::time::Duration;

use super::{Harm, Switch};
use crate::checker::{check, read_committed};
use crate::schedules::{LARGE, Source, Writer, installed, seen, turn};
use crate::servers::connect;

/// Tells the process that it is the one to do it.
const CHILD: &str = "STATECAST_TEST_EPOCH_CHILD";
const CHILD_LIMIT: Duration = Duration::from_secs(90);

/// `epoch`: a leader that was superseded writes where it stands.
pub(super) async fn superseded(how: Switch) -> Harm {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "chaos::directed::epoch::child", "--nocapture"]).env(CHILD, "1");
    command.stdin(Stdio::null()).kill_on_drop(true);
    if how.off {
        command.env("STATECAST_BREAK", how.guarantee.name());
    }
    let output = tokio::time::timeout(CHILD_LIMIT, command.output()).await.expect("it does not end").unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let line = text.lines().find_map(|line| line.split_once("harm ")).unwrap_or_else(|| panic!("{text}")).1;
    let [lost, invented, inversions, renamed, descents] =
        line.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<usize>>()[..]
    else {
        panic!("{line}")
    };
    Harm { lost, invented, inversions, renamed, descents }
}

#[tokio::test]
async fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let server = turn().await;
    let url = installed(&server).await;
    let writer = Writer::new(&url).await;
    let mut old = Source::start(&url, LARGE).await;
    writer.write("a", 1).await;
    old.poll().await;
    let mut new = Source::start(&url, LARGE).await;
    for n in 2..=3 {
        writer.write("a", n).await;
    }
    new.poll().await;
    new.write_cursor().await;
    // Whether it is refused is for the switch to say: what counts is what comes of it.
    let stale = old.try_write_cursor().await;
    println!("the superseded leader's write: {stale:?}");
    new.restart().await;
    new.poll().await;
    let committed = read_committed(&connect(&url).await.unwrap()).await.unwrap();
    let harm = Harm::of(&check(&committed, &seen(&new.delivered)));
    let Harm { lost, invented, inversions, renamed, descents } = harm;
    println!("\nharm {lost} {invented} {inversions} {renamed} {descents}");
}
