//! The hook that moves an address, on real links between network namespaces of its own: the neighbours learn of it.

use std::process::{Command, Output, Stdio};

use super::not_tested;

/// Two hosts on one cable. The other one believes that the address is elsewhere, as after a loss of the old owner.
const STORY: &str = r#"
set -eu
hook=$1 address=10.9.8.7/24
ip link set lo up
ip link add near type veth peer name far
unshare --net sleep 60 & other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
there() { nsenter -t $other -n "$@"; }
ip link set far netns $other
ip link set near up
there ip link set far up
there ip address add 10.9.8.1/24 dev far
there ip neigh add 10.9.8.7 lladdr 02:00:00:00:00:01 dev far nud stale
$hook give $address near
$hook take $address near
ip -o address show dev near | grep -qF " $address "
mac=$(cat /sys/class/net/near/address 2>/dev/null || ip -o link show near | sed 's/.*ether \([^ ]*\).*/\1/')
there ip neigh show 10.9.8.7 | grep -qF "$mac" || { there ip neigh show; echo "the neighbour does not know $mac"; exit 1; }
$hook take $address near
$hook give $address near
! ip -o address show dev near | grep -qF " $address "
$hook give $address near
if $hook give $address no-such-device 2>/dev/null; then :; fi
if $hook lose $address near 2>/dev/null; then exit 2; fi
echo done
"#;

fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()
}

#[test]
fn an_address_moves_and_the_neighbours_are_told() {
    let namespaces = ["--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc"];
    let may = run("unshare", &[&namespaces[..], &["true"]].concat()).is_some_and(|o| o.status.success());
    let has = run("/bin/sh", &["-c", "command -v ip && command -v arping && command -v nsenter"]);
    if !may || !has.is_some_and(|o| o.status.success()) {
        return not_tested("network namespaces, ip, nsenter or arping are missing, so no address was moved");
    }
    let hook = format!("{}/deploy/examples/floating-address.sh", env!("CARGO_MANIFEST_DIR"));
    let story = [&namespaces[..], &["/bin/sh", "-c", STORY, "story", &hook]].concat();
    let output = run("unshare", &story).expect("starts");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("done\n"), "{said}");
}
