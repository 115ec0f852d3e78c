import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.zip.CRC32;

/** A web server and clients that ask it at the same time, all in one process. */
public final class Served {
    private static final int CLIENTS = 4;
    private static final int ROUNDS = 150;

    public static void main(String[] arguments) throws Exception {
        InetAddress home = InetAddress.getByName("127.0.0.1");
        HttpServer server = HttpServer.create(new InetSocketAddress(home, 0), 0);
        ExecutorService servants = Executors.newFixedThreadPool(3);
        ExecutorService askers = Executors.newFixedThreadPool(CLIENTS);
        server.setExecutor(servants);
        server.createContext("/", exchange -> {
            byte[] question = exchange.getRequestBody().readAllBytes();
            CRC32 sum = new CRC32();
            sum.update(question);
            byte[] answer = Long.toHexString(sum.getValue()).getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
        URI place = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/");
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        for (int round = 0; round < ROUNDS; round++) {
            List<Future<String>> answers = new ArrayList<>();
            for (int number = 0; number < CLIENTS; number++) {
                String body = (round + "-" + number + ";").repeat(50 * (round + 1));
                HttpRequest request = HttpRequest.newBuilder(place).POST(BodyPublishers.ofString(body)).build();
                answers.add(askers.submit(() -> client.send(request, BodyHandlers.ofString()).body()));
            }
            StringBuilder line = new StringBuilder().append(round);
            for (Future<String> answer : answers) {
                line.append(' ').append(answer.get());
            }
            System.out.println(line);
            Thread.sleep(10);
        }
        server.stop(0);
        servants.shutdown();
        askers.shutdown();
        System.exit(0);
    }
}
