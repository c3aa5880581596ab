/** Gets the programs that tests and the benchmark talk to, or names those that are missing. Plain Node. */

import { canInstall, installDebianPackages, missingPackages } from './debian.mjs';
import { say, styled } from './prepare.mjs';

/** Installs what is missing, where that can be done.
 *  @param {string} consequence what becomes of what needs the rest */
export function getPrograms(consequence) {
  const missing = missingPackages();
  if (missing.length === 0) return;
  if (canInstall()) {
    say(`installing Debian packages: ${missing.join(' ')}`);
    if (installDebianPackages(missing) && missingPackages().length === 0) return;
  }
  const names = missingPackages().join(' ');
  console.log(styled('yellow', `Missing here, so ${consequence}: ${names}`));
  console.log(`On Debian or Ubuntu: sudo apt-get install ${names}`);
}
