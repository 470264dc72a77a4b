//! What a request asks for: the kind of operation, the device it is about, and the right that it needs.
//!
//! Shared access policies know three rights; Entra roles know actions, one for each kind of thing that can be done.

use axum::http::Method;

use super::policies::Right;
use crate::hub::throttle::Operation;

/// A request, before anybody looked at its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need<'a> {
    pub(super) operation: Operation,
    pub(super) device: Option<&'a str>,
    /// What a policy must allow.
    pub(super) right: Right,
    /// What a role must allow, after `Microsoft.Devices/IotHubs/`.
    pub(super) action: &'static str,
}

/// Reads method and path; the path's segments are decoded.
pub(super) fn need<'a>(method: &Method, path: &[&'a str]) -> Need<'a> {
    use Operation::{Configuration, Query, Registry, TwinRead, TwinUpdate};
    use Right::{RegistryRead, RegistryWrite, ServiceConnect};
    let read = *method == Method::GET;
    let (operation, device, right, action) = match path {
        ["twins", device, .., "methods"] => {
            (Operation::Method, Some(*device), ServiceConnect, "directMethods/invoke/action")
        }
        ["twins", device, ..] if read => (TwinRead, Some(*device), ServiceConnect, "twins/read"),
        ["twins", device, ..] => (TwinUpdate, Some(*device), ServiceConnect, "twins/write"),
        ["twins"] => (TwinRead, None, ServiceConnect, "twins/read"),
        ["devices", "query"] if *method == Method::POST => (Query, None, ServiceConnect, "twins/read"),
        ["statistics", "service"] => (Registry, None, ServiceConnect, "statistics/read"),
        ["statistics", ..] => (Registry, None, RegistryRead, "statistics/read"),
        ["configurations", "testQueries"] => {
            (Configuration, None, RegistryRead, "configurations/testQueries/action")
        }
        ["configurations", ..] if read => (Configuration, None, RegistryRead, "configurations/read"),
        ["configurations", ..] if *method == Method::DELETE => {
            (Configuration, None, RegistryWrite, "configurations/delete")
        }
        ["configurations", ..] => (Configuration, None, RegistryWrite, "configurations/write"),
        ["devices", device, "applyConfigurationContent"] => {
            (Configuration, Some(*device), RegistryWrite, "configurations/applyToEdgeDevice/action")
        }
        ["devices", rest @ ..] if read => (Registry, rest.first().copied(), RegistryRead, "devices/read"),
        ["devices", rest @ ..] if *method == Method::DELETE => {
            (Registry, rest.first().copied(), RegistryWrite, "devices/delete")
        }
        ["devices", rest @ ..] => (Registry, rest.first().copied(), RegistryWrite, "devices/write"),
        _ if read => (Registry, None, RegistryRead, "devices/read"),
        _ => (Registry, None, RegistryWrite, "devices/write"),
    };
    Need { operation, device, right, action }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_needs_its_own_right() {
        for (method, path, operation, right, action) in [
            (Method::PATCH, "twins/d", Operation::TwinUpdate, Right::ServiceConnect, "twins/write"),
            (Method::GET, "twins/d/modules/m", Operation::TwinRead, Right::ServiceConnect, "twins/read"),
            (
                Method::POST,
                "twins/d/methods",
                Operation::Method,
                Right::ServiceConnect,
                "directMethods/invoke/action",
            ),
            (Method::POST, "devices/query", Operation::Query, Right::ServiceConnect, "twins/read"),
            // A device may bear that name.
            (Method::GET, "devices/query", Operation::Registry, Right::RegistryRead, "devices/read"),
            (Method::POST, "devices", Operation::Registry, Right::RegistryWrite, "devices/write"),
            (
                Method::PUT,
                "configurations/c",
                Operation::Configuration,
                Right::RegistryWrite,
                "configurations/write",
            ),
        ] {
            let path: Vec<&str> = path.split('/').collect();
            let need = need(&method, &path);
            assert_eq!((need.operation, need.right, need.action), (operation, right, action), "{path:?}");
        }
    }
}
