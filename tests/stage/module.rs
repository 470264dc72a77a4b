//! One device's module link in the simulation: the link to the hub in memory, with its reports counted.

use std::sync::Arc;

use quorate::hub::{
    BoxFuture, Error, Target,
    link::{Connected, Handle, Link, Message, Module, OwnTwin},
    memory_link::MemoryModule,
    twin::Properties,
};
use serde_json::Value;

use super::calls::Calls;

/// A module's line. Clones are the same line.
#[derive(Clone)]
pub struct SimModule {
    pub line: MemoryModule,
    pub reports: Calls,
}

struct Counted {
    link: Handle,
    reports: Calls,
}

impl Module for SimModule {
    fn name(&self) -> &str {
        self.line.name()
    }

    fn target(&self) -> &Target {
        self.line.target()
    }

    fn stores_and_forwards(&self) -> bool {
        self.line.stores_and_forwards()
    }

    fn knock(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.line.knock()
    }

    fn connect(&self) -> BoxFuture<'_, Result<Connected, Error>> {
        Box::pin(async move {
            let connected = self.line.connect().await?;
            let link = Arc::new(Counted { link: connected.link, reports: self.reports.clone() });
            Ok(Connected { link, ..connected })
        })
    }
}

impl Link for Counted {
    fn get_twin(&self) -> BoxFuture<'_, Result<OwnTwin, Error>> {
        self.link.get_twin()
    }

    fn report<'a>(&'a self, patch: &'a Properties) -> BoxFuture<'a, Result<Option<u64>, Error>> {
        Box::pin(async move {
            let _call = self.reports.begin(None);
            self.link.report(patch).await
        })
    }

    fn answer<'a>(
        &'a self,
        call: &'a str,
        status: u16,
        payload: &'a Value,
    ) -> BoxFuture<'a, Result<(), Error>> {
        self.link.answer(call, status, payload)
    }

    fn send<'a>(&'a self, output: &'a str, message: &'a Message) -> BoxFuture<'a, Result<(), Error>> {
        self.link.send(output, message)
    }

    fn settle(&self, input: u64) -> BoxFuture<'_, Result<(), Error>> {
        self.link.settle(input)
    }
}
