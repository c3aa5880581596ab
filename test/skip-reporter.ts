/** Vitest reporter that names every skipped test with its reason, grouped by reason, above vitest's summary:
 *  what was not tested must be seen. */

import type { Reporter, TestModule } from 'vitest/node';

export default class SkipReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const byReason = new Map<string, string[]>();
    for (const module of modules) {
      for (const test of module.children.allTests('skipped')) {
        const result = test.result();
        const reason = (result.state === 'skipped' ? result.note : undefined) ?? 'no reason given';
        const names = byReason.get(reason) ?? [];
        names.push(`${module.relativeModuleId} > ${test.fullName}`);
        byReason.set(reason, names);
      }
    }
    for (const [reason, names] of byReason) {
      console.log(`\nSkipped (${names.length}): ${reason}`);
      for (const name of names) console.log(`  ${name}`);
    }
  }
}
