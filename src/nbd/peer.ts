/** Who a client of the server is, as far as it has proved it. Plain data: it goes from thread to thread. */

export type Peer =
  /** It came by a way that only the server's owner can go. */
  | { readonly kind: 'owner' }
  /** It was let in, and nobody asked for a name. */
  | { readonly kind: 'nameless' }
  /** It has proved its name: a certificate's CN, a pre-shared key's name, or `uid:N` of a user of this machine. */
  | { readonly kind: 'named'; readonly name: string };

export const OWNER: Peer = { kind: 'owner' };
export const NAMELESS: Peer = { kind: 'nameless' };

const UID_PREFIX = 'uid:';
const NAME_LIMIT = 128;

/** A user of this machine. `uid` is -1 where the system does not tell: that one has no name that anybody allowed. */
export function userPeer(uid: number): Peer {
  return uid === process.getuid?.() || uid === 0 ? OWNER : { kind: 'named', name: `${UID_PREFIX}${uid}` };
}

/** The name that a certificate or key proves; null for one that would pass for another kind of name, or that a line of
 *  a log cannot hold. */
export function provenName(name: unknown): string | null {
  if (typeof name !== 'string' || name.startsWith(UID_PREFIX)) return null;
  return isClientName(name) ? name : null;
}

/** Whether a client can have that name: 1 to 128 characters that can be printed. */
export function isClientName(name: string): boolean {
  return name.length > 0 && name.length <= NAME_LIMIT && /^[^\p{C}\p{Z}](?:[^\p{C}]*[^\p{C}\p{Z}])?$/u.test(name);
}
