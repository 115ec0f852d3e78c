import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Objects, garbage and a pool of threads; lines in a file, in order. */
public class Work {
    static long mix(long value, int rounds) {
        TreeMap<Long, String> map = new TreeMap<>();
        for (int i = 0; i < rounds; i++) {
            value = value * 6364136223846793005L + 1442695040888963407L;
            map.put(value >>> 40, Long.toString(value));
            if (map.size() > 100) {
                map.pollFirstEntry();
            }
        }
        return value ^ map.hashCode();
    }

    public static void main(String[] arguments) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(3);
        try (PrintWriter output = new PrintWriter("output.java")) {
            for (int step = 0; step < 900; step++) {
                List<Callable<Long>> tasks = new ArrayList<>();
                for (int i = 0; i < 4; i++) {
                    long seed = step * 4L + i;
                    tasks.add(() -> mix(seed, 4000));
                }
                long sum = 0;
                for (Future<Long> result : pool.invokeAll(tasks)) {
                    sum = sum * 31 + result.get();
                }
                output.println(step + " " + sum);
                output.flush();
            }
        }
        pool.shutdown();
        System.out.println("done");
    }
}
