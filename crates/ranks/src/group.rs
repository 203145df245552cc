//! The processes of a job, connected by libtorch's c10d: Gloo, whose members find each other by a store in the first one.

#![allow(unsafe_code, reason = "c10d is C++")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::RanksError;
use crate::place::Place;

/// How long ranks wait for each other at the start.
const JOIN: Duration = Duration::from_secs(300);
/// How long a rank waits for another one that is connected. One that dies is noticed at once, a machine that is cut off after this.
const WAIT: Duration = Duration::from_secs(1800);

unsafe extern "C" {
    fn oq_ranks_free(text: *mut c_char);
    #[allow(clippy::too_many_arguments, reason = "plain values cross into C++")]
    fn oq_ranks_join(
        host: *const c_char,
        port: u16,
        rank: i32,
        size: i32,
        interface: *const c_char,
        local: *const c_char,
        join_secs: u64,
        wait_secs: u64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn oq_ranks_hang_up(group: *mut c_void);
    fn oq_ranks_leave(group: *mut c_void);
    fn oq_ranks_exchange(group: *mut c_void, out: *mut C_tensor, input: *const C_tensor) -> *mut c_char;
    fn oq_ranks_gather(group: *mut c_void, out: *mut C_tensor, input: *const C_tensor) -> *mut c_char;
    fn oq_ranks_broadcast(group: *mut c_void, tensor: *mut C_tensor, root: i32) -> *mut c_char;
    fn oq_ranks_set(group: *mut c_void, key: *const c_char, value: *const c_char) -> *mut c_char;
    fn oq_ranks_get(group: *mut c_void, key: *const c_char, out: *mut *mut c_char) -> *mut c_char;
}

/// A connection to all ranks.
#[derive(Debug)]
pub(crate) struct Group(*mut c_void);

impl Group {
    pub(crate) fn join(place: &Place) -> Result<Self, RanksError> {
        let text = |text: &str| CString::new(text).expect("environment variables and host names have no byte 0");
        let (host, interface) = (text(&place.host), place.interface.as_deref().map(text));
        let local = place.is_local().then(|| host.clone());
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        let mut group = std::ptr::null_mut();
        // SAFETY: the texts outlive the call, and `group` has room for a pointer.
        let failed = said(unsafe {
            oq_ranks_join(
                host.as_ptr(),
                place.port,
                place.rank as i32,
                place.size as i32,
                pointer(&interface),
                pointer(&local),
                JOIN.as_secs(),
                WAIT.as_secs(),
                &raw mut group,
            )
        });
        let Place { rank, size, ref host, port, .. } = *place;
        failed.map_or(Ok(Self(group)), |cause| Err(RanksError::Join { rank, size, host: host.clone(), port, cause }))
    }

    /// Equal parts of `input` go to each rank, and `out` becomes the parts from each. Both are contiguous, on the CPU, and of one size.
    pub(crate) fn exchange(&self, out: &mut Tensor, input: &Tensor) -> Result<(), String> {
        // SAFETY: `group` is connected, and both tensors outlive the call.
        done(unsafe { oq_ranks_exchange(self.0, out.as_mut_ptr(), input.as_ptr()) })
    }

    /// `out` becomes the `input` of each rank. Both are contiguous and on the CPU.
    pub(crate) fn gather(&self, out: &mut Tensor, input: &Tensor) -> Result<(), String> {
        // SAFETY: as in `exchange`.
        done(unsafe { oq_ranks_gather(self.0, out.as_mut_ptr(), input.as_ptr()) })
    }

    /// `tensor`, contiguous and on the CPU, becomes that of the rank `root`.
    pub(crate) fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), String> {
        // SAFETY: as in `exchange`.
        done(unsafe { oq_ranks_broadcast(self.0, tensor.as_mut_ptr(), root as i32) })
    }

    /// Ends the connections, so that nobody waits for this process any more. Notes can still be left and read.
    pub(crate) fn hang_up(&self) {
        // SAFETY: `join` made it, and what exchanges tensors looks whether there is a connection.
        unsafe { oq_ranks_hang_up(self.0) }
    }

    /// Leaves a note for the others.
    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), String> {
        let [key, value] = [key, value].map(|text| CString::new(text.replace('\0', " ")).expect("they are replaced"));
        // SAFETY: `group` is connected, and both texts outlive the call.
        done(unsafe { oq_ranks_set(self.0, key.as_ptr(), value.as_ptr()) })
    }

    /// A note that was left.
    pub(crate) fn get(&self, key: &str) -> Result<Option<String>, String> {
        let key = CString::new(key).expect("keys are our own");
        let mut value = std::ptr::null_mut();
        // SAFETY: as in `set`, and `value` has room for a pointer.
        done(unsafe { oq_ranks_get(self.0, key.as_ptr(), &raw mut value) })?;
        Ok(said(value))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: `join` made it, and nobody uses it after this.
        unsafe { oq_ranks_leave(self.0) }
    }
}

fn done(failed: *mut c_char) -> Result<(), String> {
    said(failed).map_or(Ok(()), |said| Err(plain(&said).to_owned()))
}

/// A text from C++, which is freed.
fn said(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: what is not null ends with a byte 0, and is ours until it is freed.
    let said = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: it was allocated by `strdup`, and nobody uses it after this.
    unsafe { oq_ranks_free(text) };
    Some(said)
}

/// What Gloo says, without the place in its source and its advice.
fn plain(said: &str) -> &str {
    let said = said.strip_prefix('[').and_then(|said| Some(said.split_once("] ")?.1)).unwrap_or(said);
    said.split_once(". This is typically").map_or(said, |(said, _)| said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gloo_says_is_shortened() {
        let said = "[/third_party/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:51930. This is typically caused by..";
        assert_eq!(plain(said), "Connection closed by peer [127.0.0.1]:51930");
        assert_eq!(plain("Timed out"), "Timed out");
    }
}
