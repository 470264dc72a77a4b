#!/bin/sh
# Moves an address with the ownership: hooks for workload.kind = "hooks".
#
#   on_owner   = ["/usr/local/bin/floating-address.sh", "take", "192.168.7.10/24", "eth0"]
#   on_standby = ["/usr/local/bin/floating-address.sh", "give", "192.168.7.10/24", "eth0"]
#
# Needs ip (iproute2) and arping (iputils), and CAP_NET_ADMIN and CAP_NET_RAW. "give" succeeds only when ip says that the address is
# not there, and does no harm where it never was.
set -eu
verb=${1:?take or give} address=${2:?ADDRESS/PREFIX} device=${3:?the network device}
case $address in
  */*) ;;
  *) echo "$address has no prefix: write ADDRESS/PREFIX" >&2; exit 64 ;;
esac

# ip compares addresses, not texts, and fails where it cannot say.
held() { ip -o address show dev "$device" to "${address%/*}"; }

case $verb in
  take)
    ip address replace "$address" dev "$device"
    # Tells the neighbours that the address is here now: their tables still name the old owner.
    case $address in
      *:*) ;;
      *) arping -q -U -c 3 -w 3 -I "$device" "${address%/*}" || echo "the neighbours were not told of $address" >&2 ;;
    esac
    ;;
  give)
    before=$(held)
    if [ -n "$before" ]; then ip address del "$address" dev "$device"; fi
    after=$(held)
    if [ -n "$after" ]; then echo "$address is still on $device" >&2; exit 1; fi
    ;;
  *) echo "take or give, not $verb" >&2; exit 64 ;;
esac
