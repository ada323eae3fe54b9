// Two children send numbers through what node makes of their standard output, while
// timers go off in all; a number that is missing, double or wrong is noticed. They go on
// until there is a file.
//
//     family.js GO BEGUN RESULT
const { spawn } = require('child_process');
const fs = require('fs');

const nextSum = (sum, n, child) => (sum * 31 + n * child) % 1000003;

function sendNumbers(child) {
    let n = 0, sum = 0;
    const timer = setInterval(() => {
        sum = nextSum(sum, ++n, child);
        process.stdout.write(`${child} ${n} ${sum}\n`);
    }, 5);
    process.stdin.resume();
    process.stdin.on('end', () => {
        clearInterval(timer);
        process.stdout.write(`${child} end ${n}\n`);
        process.exitCode = child;
    });
}

function put(path, text) {
    fs.writeFileSync(path + '.new', text);
    fs.renameSync(path + '.new', path);
}

function follow(go, begun, result) {
    let wrong = 0, ticks = 0, begins = 0, ended = 0;
    const codes = [];
    const ticking = setInterval(() => ticks++, 10);
    const children = [1, 2].map((child) => {
        const stdio = ['pipe', 'pipe', 'inherit'];
        const process_ = spawn(process.execPath, [__filename, 'child', child], { stdio });
        let rest = '', count = 0, sum = 0;
        process_.stdout.on('data', (data) => {
            const lines = (rest + data).split('\n');
            rest = lines.pop();
            for (const line of lines) {
                const [, n, theirs] = line.split(' ');
                if (n === 'end') {
                    wrong += Number(theirs) !== count;
                    continue;
                }
                if (count++ === 0 && ++begins === 2) fs.closeSync(fs.openSync(begun, 'w'));
                sum = nextSum(sum, Number(n), child);
                wrong += Number(n) !== count || Number(theirs) !== sum;
            }
        });
        process_.on('close', (code) => {
            codes.push(code);
            if (++ended < 2) return;
            clearInterval(ticking);
            const ticked = ticks ? 'ticked' : 'never ticked';
            codes.sort();
            put(result, `${wrong} wrong, codes ${codes.join(' ')}, ${ticked}\n`);
        });
        return process_;
    });
    const waiting = setInterval(() => {
        if (!fs.existsSync(go)) return;
        clearInterval(waiting);
        for (const child of children) child.stdin.end();
    }, 20);
}

const [first, ...others] = process.argv.slice(2);
if (first === 'child') sendNumbers(Number(others[0]));
else follow(first, ...others);
