import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Threads fill a queue with rows of numbers and one checks them, while a timer goes off and
 * garbage is collected. They go on until there is a file.
 *
 * <p>java Family GO BEGUN RESULT
 */
public class Family {
    private static final int MAKERS = 4;
    private static final int ROW = 64;

    private static final ArrayBlockingQueue<long[]> rows = new ArrayBlockingQueue<>(64);
    private static final AtomicBoolean stop = new AtomicBoolean();
    private static final AtomicLong made = new AtomicLong();
    private static final AtomicLong seen = new AtomicLong();
    private static final AtomicLong wrong = new AtomicLong();
    private static final AtomicLong ticks = new AtomicLong();

    private static Void make(long step) throws InterruptedException {
        for (long n = 1; !stop.get(); n++) {
            long[] row = new long[ROW];
            row[0] = n;
            for (int i = 1; i < ROW; i++) {
                row[i] = row[i - 1] * 31 + step;
            }
            rows.put(row);
            made.incrementAndGet();
            if (n % 16 == 0) {
                Thread.sleep(1);
            }
        }
        return null;
    }

    private static Void check() throws InterruptedException {
        while (true) {
            long[] row = rows.poll(20, TimeUnit.MILLISECONDS);
            if (row == null) {
                if (stop.get() && seen.get() == made.get()) {
                    return null;
                }
                continue;
            }
            long step = row[1] - row[0] * 31;
            for (int i = 1; i < ROW; i++) {
                if (step < 1 || step > MAKERS || row[i] != row[i - 1] * 31 + step) {
                    wrong.incrementAndGet();
                }
            }
            seen.incrementAndGet();
        }
    }

    private static void put(String path, String text) throws Exception {
        Path fresh = Path.of(path + ".new");
        Files.writeString(fresh, text);
        Files.move(fresh, Path.of(path));
    }

    public static void main(String[] arguments) throws Exception {
        var timer = Executors.newScheduledThreadPool(1);
        timer.scheduleAtFixedRate(ticks::incrementAndGet, 10, 10, TimeUnit.MILLISECONDS);
        ExecutorService pool = Executors.newFixedThreadPool(MAKERS + 1);
        for (long step = 1; step <= MAKERS; step++) {
            long own = step;
            pool.submit(() -> make(own));
        }
        Future<Void> checker = pool.submit(Family::check);
        while (seen.get() < 1000) {
            Thread.sleep(5);
        }
        Files.newOutputStream(Path.of(arguments[1]), StandardOpenOption.WRITE).close();
        while (!Files.exists(Path.of(arguments[0]))) {
            Thread.sleep(20);
        }
        stop.set(true);
        checker.get();
        pool.shutdown();
        timer.shutdownNow();
        boolean all = made.get() == seen.get();
        put(arguments[2],
            wrong + " wrong, " + (all ? "all" : "not all") + " seen, "
                + (ticks.get() > 0 ? "ticked" : "never ticked") + "\n");
    }
}
