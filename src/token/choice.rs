//! Which token a request goes to: a decision over what is known of each, without clock or HSM, so that it can be tested by itself.

/// Most tokens, the first included.
pub const MAX_TOKENS: usize = 8;

/// How a token stands, as far as a request is concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// Serves, and nothing is known against it.
    Sound,
    /// Serves, but the last work of one kind failed.
    Faulty,
    /// A worker is being started.
    Starting,
    /// No worker serves, and none is being started.
    Down,
    /// This request has failed on the worker that served, and another will come.
    Tried,
    /// This request has failed on the worker that serves, and it stays.
    Refused,
}

/// What a request does now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Choice {
    /// Go to the token with this index.
    Use(usize),
    /// Wait until a token changes.
    Wait,
    /// Give up: no token could do it, and none is about to.
    GiveUp,
}

/// Chooses for a request. `current`: the token that served last, which is kept while it is sound, so that a token that comes
/// and goes does not make every request change its way.
pub(super) fn choose(standings: &[Standing], current: usize) -> Choice {
    let order = || std::iter::once(current).chain(0..standings.len());
    let first = |wanted: Standing| order().find(|index| standings.get(*index) == Some(&wanted));
    if let Some(index) = first(Standing::Sound).or_else(|| first(Standing::Faulty)) {
        return Choice::Use(index);
    }
    let may_change = |standing: &Standing| matches!(standing, Standing::Starting | Standing::Tried);
    if standings.iter().any(may_change) { Choice::Wait } else { Choice::GiveUp }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Standing::{Down, Faulty, Refused, Sound, Starting, Tried};
    use super::*;

    #[test]
    fn the_current_token_is_kept_while_it_is_sound() {
        for (standings, current, choice) in [
            (&[Sound][..], 0, Choice::Use(0)),
            (&[Faulty], 0, Choice::Use(0)),
            (&[Starting], 0, Choice::Wait),
            (&[Tried], 0, Choice::Wait),
            (&[Down], 0, Choice::GiveUp),
            (&[Sound, Sound], 1, Choice::Use(1)),
            (&[Sound, Faulty], 1, Choice::Use(0)),
            (&[Down, Faulty], 0, Choice::Use(1)),
            (&[Faulty, Faulty], 1, Choice::Use(1)),
            (&[Tried, Down], 0, Choice::Wait),
            (&[Refused], 0, Choice::GiveUp),
            (&[Refused, Down], 0, Choice::GiveUp),
            (&[Refused, Starting], 0, Choice::Wait),
            (&[Tried, Sound], 0, Choice::Use(1)),
            (&[Starting, Down, Sound], 0, Choice::Use(2)),
            (&[Down, Down], 1, Choice::GiveUp),
        ] {
            assert_eq!(choose(standings, current), choice, "{standings:?}, {current}");
        }
    }

    proptest! {
        #[test]
        fn no_request_goes_where_it_failed_or_nothing_serves(
            standings in prop::collection::vec(prop::sample::select(vec![Sound, Faulty, Starting, Down, Tried, Refused]), 1..=MAX_TOKENS),
            current in 0..MAX_TOKENS,
        ) {
            match choose(&standings, current) {
                Choice::Use(index) => prop_assert!(matches!(standings[index], Sound | Faulty)),
                Choice::Wait => prop_assert!(standings.iter().all(|standing| matches!(standing, Starting | Down | Tried | Refused))),
                Choice::GiveUp => prop_assert!(standings.iter().all(|standing| matches!(standing, Down | Refused))),
            }
        }
    }
}
