"""Plots under the open sky: fears, storms, journeys, nights, wishes and skills; each a function that tells one tale."""

from __future__ import annotations

from llamita.data.tales_grammar import Tale, table
from llamita.data.tales_world import begin, close_tale, is_animal, open_tale, scenery

# what is feared, why one has to face it one day, how it was in truth
_FEARS = table("""
the dark / {f.first} did not come home from the woods. Night fell, and {h} was the only one with a lantern / the dark
    was only the day with its eyes closed
deep water / {f.first}'s little raft came loose and drifted away from the shore. Only {h} was near / the water carried
    {h.him} like a hand
high places / a baby bird fell out of its nest. The nest was high up in the tree / the tree held {h.him}, one branch
    after another
thunder / black clouds came, and the little ducks were still outside. Somebody had to bring them in / thunder was
    loud, but it did not bite
the big gray goose / the goose stood in the middle of the bridge, and {f.first} was waiting for help on the other side
    / the goose was only guarding her eggs
the old well / {f.first} heard a faint cry from the old well, and nobody else was there to look / there was only a wet
    cat in the bucket
singing in front of others / it was {g}'s birthday, and {g} wished for nothing but a song / after the first note, the
    song went on all by itself
the narrow bridge / {g} fell ill, and the medicine was on the other side of the narrow bridge / the bridge shook a
    little, but it held
strangers / a tired stranger knocked at the door and asked the way, and {h} was alone at home / the stranger was a
    friend of {g}'s and knew funny stories
the cellar / {g} needed one jar of honey to get well, and it was down in the cellar / there was nothing in the cellar
    but jars and one sleepy spider
""")
# the advice, and how it is followed
_ADVICE = table("""
Take one small step, and then another / took one small step, and then another
Count to three and breathe / counted to three and breathed
Hum a tune while you do it / hummed a little tune
Look only at what is right in front of you / looked only at what was right in front of {h.him}
Think of someone you love / thought of {m}
Being brave means being afraid and doing it anyway / was afraid and did it anyway
""")


def fear_overcome(tale: Tale) -> None:
    """What the hero is afraid of at the start is what has to be faced, with the advice that was given, and shrinks."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    fear, need, truth = tale.pick(_FEARS)
    advice, followed = tale.pick(_ADVICE)
    tale.let(fear=fear)
    open_tale(tale)
    tale.one_of(
        "There was one thing that {h.first} was afraid of: {fear}.",
        "{h.First} was afraid of {fear}. When {h.he} only thought of it, {h.his} knees shook.",
        "{h.First} was brave in many ways, but {h.he} was afraid of {fear}.",
    )
    adviser = tale.pick(("g", "m", "e"))
    tale.let(wise=tale.scope[adviser])
    tale.one_of(
        f'"Everyone is afraid of something," said {{wise.first}}. "{advice}."',
        f'"Do you know what I do when I am afraid?" asked {{wise.first}}. "I have a little rule. {advice}."',
        f'{{h}} told {{wise.first}} about it. "{advice}," said {{wise}}.',
    )
    tale.paragraph(f"[{{Day}}|Then, {{day}}|But {{day}}], {need}.")
    tale.one_of(
        "{h} wanted to run away. {h.His} heart beat like a drum.",
        '"I cannot do it," thought {h}. There was nobody else to ask.',
        "{h} grew pale. It was {fear}, of all things!",
        "{h} closed {h.his} eyes and opened them again.",
    )
    tale.one_of(
        f"Then {{h.he}} remembered what {{wise}} had said. {{h}} {followed}.",
        f'But {{h}} seemed to hear {{wise}}\'s voice: "{advice}." So {{h}} {followed}.',
    )
    tale.one_of(
        f"And, little by little, {{h.he}} did it. It turned out that {truth}.",
        f"{{h.He}} was still afraid, but {{h.he}} went on. And {truth}.",
    )
    tale.paragraph()
    if "{f.first}" in need:
        tale.one_of(
            '"You came!" cried {f}, and {f.he} hugged {h}. "And I know how afraid you were."',
            '"Thank you," said {f}. "You are the bravest {h.kind} I know."',
            "When {h} reached {f}, they both began to laugh.",
        )
    elif "{g}" in need:
        tale.one_of(
            '"You did that for me?" said {g}, and {g.his} eyes shone.',
            '{g} smiled from ear to ear. "That did me more good than anything," {g.he} said.',
        )
    else:
        tale.one_of(
            '"You did it!" said {m}, who had seen everything. "And all by yourself."',
            "When it was done, {h} sat down and laughed out loud.",
        )
    tale.one_of(
        '"Were you not afraid?" asked {wise}. "Yes," said {h}, "but I did it anyway."',
        '"The fear is still there," said {h}, "but now it is as small as a mouse."',
        "That night, {h} thought of {fear} and was not afraid at all.",
    )
    close_tale(
        tale,
        "And the next time was easier.",
        "From then on, when somebody was afraid, {h} knew what to tell them.",
        "{h} had grown a little that day, though nobody could see it from outside.",
    )


def storm(tale: Tale) -> None:
    """A storm comes; somebody is out in it or comes to the door; afterwards what it broke is put right together."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    tale.let(day="[one {time} in {season}|one strange, still {time}|late one {season} {time}]")
    tale.let(damage="[roof|fence|bridge|gate|shed]")
    open_tale(tale)
    tale.one_of(
        '{Day}, the sky turned dark, and the birds became quiet. "A storm is coming," said {m} to {h.first}.',
        '{Day}, {h.first} saw black clouds behind the hill. "Quick, we must get ready!" said {m}.',
        "{Day}, not one leaf moved, and {h.first} smelled rain. Then came the first thunder.",
    )
    tale.one_of(
        "They closed everything that could be closed and brought in wood for the fire.",
        "They tied down the [boat|cart|barrel] and called everyone inside.",
        "{h} lit a candle and put it in the window."
        if not is_animal(tale)
        else "They filled the door with leaves and moss.",
    )
    branch = tale.pick(("guest", "rescue", "dark"))
    tale.paragraph()
    if branch == "guest":
        _storm_guest(tale)
    elif branch == "rescue":
        _storm_rescue(tale)
    else:
        _storm_stories(tale)
    tale.paragraph()
    tale.one_of(
        "In the morning, the sun came out. The storm had broken the {damage}.",
        "When it was over, there was a rainbow. But the {damage} was broken.",
        "The next day, the sky was blue again, and only the broken {damage} told of the storm.",
    )
    helper = {"guest": "{s}", "rescue": "{f}", "dark": "{e.first}"}[branch]
    tale.one_of(
        f'"I will help you," said {helper}. They worked side by side until the {{damage}} was whole again.',
        f"{helper} held the boards while {{h}} hammered. Before noon, the {{damage}} was as good as new.",
        f"So {{h}}, {{m}}, and {helper} went to work, and by evening the new {{damage}} was stronger than the old one.",
    )
    close_tale(
        tale,
        '"Let the next storm come," said {h}. "We are not alone."',
        "After every storm, {h} learned, there is something to mend and someone to help.",
        "{h} was not afraid of storms anymore.",
        "A storm goes by, but a friend stays.",
    )


def _storm_guest(tale: Tale) -> None:
    tale.one_of(
        "In the middle of the storm, somebody knocked. There stood {s.first}, wet from head to foot.",
        "Then {h} heard a weak voice through the wind. It was {s.first}, who had lost the way.",
    )
    tale.one_of(
        '"Come in, come in!" said {h}. {h.He} gave {s.him} a dry blanket and a cup of hot soup.',
        '{h} moved closer to the wall. "There is room for one more," {h.he} said, and {h.he} shared {h.his} blanket.',
    )
    tale.one_of(
        "{s} stopped shaking. All night long, the storm howled, but inside it was warm.",
        "They told each other riddles until the thunder was far away.",
    )


def _storm_rescue(tale: Tale) -> None:
    tale.one_of(
        '"Where is {f.first}?" asked {h}. Nobody had seen {f.him}. {f} was still out {place.at}!',
        "Then {h} thought of {f.first}, who had gone to {place} and had not come back.",
    )
    tale.one_of(
        '{h} took a rope and a lantern and went out with {m}. The rain beat on their faces. "{f}! {f}!" they called.',
        "{h} rang a bell, again and again, so that {f} could hear where home was.",
        "{h} and {m} went from tree to tree, holding on to each other, and called {f}'s name.",
    )
    tale.one_of(
        "At last they heard an answer. {f} was sitting under a big stone, cold and frightened.",
        "And there, out of the dark, {f} came, stumbling and wet and very glad.",
    )
    tale.one_of("They brought {f.him} home to the fire.", '"I knew that you would come," said {f}.')


def _storm_stories(tale: Tale) -> None:
    tale.one_of(
        "The wind blew out the light, and it was as dark as the inside of a sack. {h} began to tremble.",
        "The thunder was so loud that the walls shook. {h} put a pillow over {h.his} ears.",
    )
    tale.one_of(
        '"Let us make our own thunder," said {g}. They drummed on pots and pans, louder and louder, until they had to'
        " laugh. When they stopped, the storm had stopped too.",
        '"I will tell you about the biggest storm of my life," said {g}. {h} listened so hard that {h.he} forgot to be'
        " afraid. When the story was over, the storm was over too.",
        "{g} began to sing, then {m}, and then {h}. They sang every song they knew. After the last one, it was quiet"
        " outside.",
    )


# what for, what happens on arrival, what is brought back
_GOALS = table("""
bring a letter to {g} / {g} read the letter twice and kissed it / a letter for {m}
see the sea for the first time / the sea was bigger than anything {h} had ever seen / a white shell
find the spring where the river begins / a little silver spring came out of the rock, no bigger than a cup / a bottle
    of the clear water
fetch healing herbs for {g} / the herbs grew there, green and sweet / a bunch of herbs, and {g} got well
visit {s}, an old friend who had moved far away / {s} came running with open arms / a hundred stories to tell
see the sun rise from the mountain / the sun came up like a great red ball / a small red stone from the top
bring {g} a basket of eggs / not one egg was broken, and {g} clapped {g.his} hands / one of {g}'s warm cakes
hear the great bell in the city / the bell rang so deep that {h} felt it in {h.his} feet / a tiny bell on a string
""")
# who is met in need, what they need, the help given, how they return it (at the obstacle)
_TRAVELERS = table("""
turtle / lay on its back and could not turn over / turned it over
beetle / had fallen into a puddle / held out a leaf and pulled it out
crow / had a thorn in its foot / pulled out the thorn
mouse / was shivering with cold / gave it a warm piece of cloth
old horse / could not reach the green apples / picked some apples for it
duck / had a fishing line around its leg / took the line off
""")
# the obstacle, how the one who was helped gets the hero past it
_OBSTACLES = table("""
a wide river / knew a place where flat stones led across
a dark wood / knew the way and went in front
a crossing with three roads / pointed to the right road
thick fog / called out from ahead, so that {h} could follow the sound
a high wall / knew of a little door behind the ivy
""")


def journey(tale: Tale) -> None:
    """A way with a goal: somebody in need is helped, the obstacle comes, help returns, the goal is reached, and"
    " home."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    at_sea = tale.scope["world"] == "seaside"
    goal, arrival, souvenir = tale.pick([g for g in _GOALS if not (at_sea and "the sea" in g[0])])
    traveler, need, deed = tale.pick(_TRAVELERS)
    obstacle, passage = tale.pick(_OBSTACLES)
    tale.let(traveler=traveler, obstacle=obstacle)
    open_tale(tale, tale.pick(("", "curious", "brave")))
    tale.say(f"{{Day}}, {{h.first}} set out to {goal}.")
    scenery(tale)
    company = tale.chance(0.4)
    tale.one_of(
        '"It is a long way," said {m}. "Be kind to those you meet."',
        '{m} packed some bread and cheese. "Do not forget to come back," {m} said.',
        "{h} took a stick, a bottle of water, and a piece of bread.",
    )
    if company:
        tale.one_of(
            "{F.first} came along, because two are braver than one.",
            '"Wait for me!" called {f.first}. "I am coming too!"',
        )
    tale.paragraph()
    tale.one_of(
        f"After a while, {{h}} came upon a {{traveler}} that {need}. {{h}} {deed}.",
        f"By the side of the road there was a {{traveler}}. It {need}. {{h}} was in a hurry, but {{h.he}} stopped."
        f" {{h.He}}"
        f" {deed}.",
    )
    tale.one_of(
        '"Thank you," said the {traveler}. "Perhaps I can help you one day."',
        '"That was kind," said the {traveler}. "Where are you going? I think I will go that way too."',
    )
    tale.paragraph()
    tale.one_of(
        "Then the way ended, and {h} stood before {obstacle}. How could {h.he} go on?",
        'They walked on, and the sun grew hot. Then they came to {obstacle}. "What now?" said {f}.'
        if company
        else '{h} walked on and on. Then {h.he} came to {obstacle}. "What now?" {h.he} thought.',
        "Everything went well until there was {obstacle} in front of {h.him}.",
    )
    tale.one_of(
        f"Just then, the {{traveler}} was there again. It {passage}.",
        f'"Let me help you," said a voice. It was the {{traveler}}! It {passage}.',
    )
    tale.paragraph()
    tale.one_of(
        f"So they reached the end of the journey, and {arrival}."
        if company
        else f"So {{h}} got there at last, and {arrival}.",
        f"It was not far from there. At last {{h}} stood at the end of the road, and {arrival}.",
    )
    tale.one_of(
        f"When {{h}} came home, {{h.he}} brought {souvenir}.",
        f"And what did {{h}} bring home? {souvenir[0].upper() + souvenir[1:]}." if "," not in souvenir else "",
        f"{{h}} went home the same way, with {souvenir.split(',')[0]} in {{h.his}} bag."
        if "stories" not in souvenir
        else "{h} went home the same way, with a hundred stories to tell.",
    )
    close_tale(
        tale,
        "And every time {h} met a {traveler}, {h.he} said hello.",
        '"The way was long," {h} told {m}, "but it was full of friends."',
        "The world is big, thought {h}, but home is the best place to come back to.",
        "That night, {h} dreamed of the road.",
    )


# the trouble, what it was, what is done
_SLEEPLESS = table("""
a scratching sound / only a branch that rubbed against the wall / tied the branch back
a tall shadow / only a coat on a hook / put the coat away
a soft tapping / only drops of rain falling into a bucket / turned the bucket over
two shining eyes / only a moth with spots on its wings / let the moth out into the night
a long, low howl / only the wind in an empty jug / put a cork into the jug
a strange white glow / only the moon shining on a pan / turned the pan around
""")


def cannot_sleep(tale: Tale) -> None:
    """A quiet tale: something keeps the hero awake; with light or company it is found out, and sleep comes."""
    begin(tale)
    trouble, truth, deed = tale.pick(_SLEEPLESS)
    tale.let(trouble=trouble)
    open_tale(tale)
    tale.one_of(
        "One night, {h.first} could not sleep. {h.He} turned to the left, and {h.he} turned to the right.",
        "It was late, and everyone was asleep. Only {h.first} lay awake.",
        '"Good night," said {m}, and it became dark. But {h.first} could not sleep.',
    )
    tale.one_of("There was {trouble}.", "Then {h} noticed {trouble}.", "{h} sat up. Was there not {trouble}?")
    tale.one_of(
        '"A monster!" thought {h}, and {h.he} pulled the blanket over {h.his} head.',
        "{h} held {h.his} breath. What could it be?",
        "{h.His} heart went bump, bump, bump.",
    )
    tale.paragraph()
    if tale.chance(0.5):
        tale.one_of(
            '"{m}!" called {h}. {m} came with a candle. "Let us look together," {m} said.',
            '{h} crept to {m}\'s bed. "I am afraid," {h.he} whispered. {m} took a lantern, and they went to look.',
        )
        tale.say(f"They found that it was {truth}.", f"{{m}} laughed softly, and {{h}} {deed}.")
    else:
        tale.one_of(
            "But there was nobody to call, for {m} needed to sleep. So {h} took {h.his} courage in both hands and got"
            " up.",
            '"I am not a baby," {h} told {h.himself}. {h.He} got up, very quietly, and went to look.',
        )
        tale.say(f"It was {truth}! {{h}} {deed}.", "{h.He} was a little ashamed, and very glad.")
    tale.paragraph()
    tale.one_of(
        'Still {h} was not tired. "Count the stars," said {g}. {h} began to count: one, two, three. At nineteen,'
        " {h.he} was"
        " asleep.",
        "Then {h} lay down again and listened. Far away, a frog was singing. The song grew slower and slower, and so"
        " did"
        " {h}'s breath.",
        "{g} sang an old song about the moon and a white boat. Before the boat reached the shore, {h} was sleeping.",
        "Outside, the moon went over the roofs. It looked in at {h}, who was fast asleep."
        if not is_animal(tale)
        else "Outside, the moon went over the trees. It looked in at {h}, who was fast asleep.",
    )
    tale.one_of(
        'In the morning, {h} told {f.first} about it. "It was nothing," {h} said, and they both laughed.',
        "After that night, {h} always looked first, before being afraid.",
        "The night was quiet, and all was well.",
        "Good night, {h}.",
    )


# who grants the wish, where it is met, why it needs help, how it is helped
_WISHERS = table("""
golden fish / in the stream / was caught between two stones / lifted the stone
little star / {place.at} / had fallen into a bush / carried it to the top of the hill, where it was close to the sky
white moth / {place.at} / was tangled in a spider's web / loosened every thread
tiny old man / {place.at} / had lost his way in the tall grass / bent the grass and showed him the path
snow-white deer / {place.at} / had a rope around its leg / untied the rope
silver frog / in the middle of the road / was lying in the dust, far from the water / carried it back to the water
""")
# what the hero had always wanted, what is sad, the season, what the wish is spent on, how it comes true
_WISHES = table("""
a pony / {f.first} had been ill for weeks / autumn / that {f} would get well / {f} stood at the door, as healthy as
    ever
a real crown / it had not rained for months, and the fields were brown / summer / for rain / soft rain began to fall
    on the dry fields
wings / {e.first} had lost {e.his} voice and could not sing anymore / spring / that {e} would sing again / {e} was
    singing so loudly that everyone could hear it
a mountain of cake / the winter was hard, and the birds had nothing to eat / winter / for food for all the birds /
    every bush was full of red berries
a ship / {g} was far away and lonely / summer / to have {g} near / {g} stood at the door with a bag in each hand
a flying carpet / {f.first} had to move away soon / spring / that {f} could stay / {f} came running with the news that
    nobody had to move
a chest of gold / the old apple tree was dying, and everyone loved it / spring / that the apple tree would live / the
    old tree was covered with pink blossoms
""")


def wish(tale: Tale) -> None:
    """A creature that was helped grants one wish; the hero had a wish of their own and gives it away."""
    who, where, need, deed = tale.pick(_WISHERS)
    dream, sorrow, season, spent, comes = tale.pick(_WISHES)
    begin(tale, season=season)
    it = "he" if who.endswith("man") else "it"
    tale.let(who=who, dream=dream, it=it)
    open_tale(tale, tale.pick(("", "kind", "gentle")))
    tale.one_of("{h.First} had always dreamed of having {dream}.", "If {h.first} had one wish, it was for {dream}.")
    tale.say(f"But there was also something sad: {sorrow}.")
    tale.paragraph()
    tale.one_of(
        f"{{Day}}, {{h}} found a {{who}} {where}. {{It}} {need}. {{h}} {deed}.",
        f"{{Day}}, {{h}} heard a thin voice {where}. It came from a {{who}} that {need}. {{h}} {deed}."
        if it == "it"
        else f"{{Day}}, {{h}} heard a thin voice {where}. It came from a {{who}} who {need}. {{h}} {deed}.",
    )
    tale.one_of(
        '"Thank you," said the {who}. "For that, you may make one wish. Only one, so think well!"',
        'The {who} looked at {h.him}. "You have a good heart. I will give you one wish," {it} said.',
    )
    tale.paragraph()
    tale.one_of(
        "{h} opened {h.his} mouth to ask for {dream}. But then {h.he} stopped and was quiet for a long time.",
        "One wish! {h} thought of {dream}. Then {h.he} thought of something else.",
        "At first {h} saw only {dream} before {h.his} eyes. It would be so easy to say.",
    )
    tale.say(f'"I wish {spent}," {{h.he}} said.')
    tale.one_of(
        '"Is that really what you want?" asked the {who}. {h} nodded.',
        '"Not for yourself?" asked the {who}. "It is for me too," said {h}.',
        "The {who} smiled and was gone.",
    )
    tale.paragraph()
    tale.one_of(
        f"And before the sun went down, {comes}.",
        f"The next morning, {comes}.",
        f"{{h}} ran home. And see, {comes}!",
    )
    tale.one_of(
        "Nobody knew how it had happened, and {h} only smiled.",
        "{h} was happier than if {h.he} had gotten {dream}.",
        '"It is like magic!" said {m}. "Perhaps it is," said {h}.',
    )
    close_tale(
        tale,
        "{h} never got {dream}, and {h.he} did not mind at all.",
        "The best wish, {h} found, is the one you give away.",
        f"And sometimes, {where}, {{h}} thought that {{h.he}} saw the {{who}} again.",
    )


# the skill, three failures, the secret of it, the use it has
_SKILLS = table("""
whistle / only air came out / make your lips very round / whistled so loudly that {f.first} found the way out of the thick
    fog
swim / {h} swallowed half the pond / lie on the water as if it were a bed / swam across and brought back {f.first}'s hat
skate / {h} sat down on the ice / lean forward and look ahead / skated all the way around with {f.first}
read / the letters danced before {h.his} eyes / take one letter at a time / read a whole story to {f.first}
tie a knot / the rope fell apart / go over, under, and through the hole / tied {f.first}'s boat to the tree before it could
    drift away
ride / {h} landed in the grass / sit straight and trust the pony / rode through the village with {f.first} behind {h.him}
juggle / all three balls fell on the floor / throw one ball high before the next one / made {f.first} laugh on a sad day
light a fire / there was nothing but smoke / begin with the very smallest sticks / made a fire that kept {f.first} warm
""")


def new_skill(tale: Tale) -> None:
    """Something is hard to learn; tries fail, somebody tells the secret of it, practice does the rest; it is of use."""
    begin(tale)
    skills = [s for s in _SKILLS if not (s[0] == "skate" and tale.scope["season"] != "winter")]
    skills = [s for s in skills if not (s[0] == "swim" and tale.scope["season"] == "winter")]
    skill, failure, trick, use = tale.pick([s for s in skills if not (is_animal(tale) and s[0] == "ride")])
    tale.let(skill=skill, teacher=tale.scope[tale.pick(("g", "e", "m"))])
    open_tale(tale, tale.pick(("", "stubborn", "impatient")))
    tale.one_of(
        "{h.First} wanted to learn to {skill}.",
        "Everyone {h.first} knew could {skill}. Only {h.he} could not.",
        '"I wish I could {skill}," said {h.first}.',
    )
    tale.one_of(
        f"{{h}} tried once, and {failure}. {{h}} tried twice, and {failure} again.",
        f"{{Day}}, {{h.he}} tried it, but {failure}. {{h.He}} tried again, but it was no better.",
        f"{{h.He}} tried it in the morning, at noon, and in the evening. Every time, {failure}.",
    )
    tale.one_of(
        '"I will never learn it!" said {h}, and {h.he} stamped {h.his} foot.',
        '{h} wanted to give up. "It is too hard," {h.he} said.',
        "{S.first} laughed, and {h} turned red.",
        "",
    )
    tale.paragraph()
    tale.one_of(
        f'{{teacher.First}} came and sat down beside {{h}}. "Do you know how long it took me?" {{teacher.he}} asked.'
        f' "A whole'
        f' {{season}}. The secret is this: {trick}."',
        f'"Nobody can do it at first," said {{teacher.first}}. "You have to {trick}."',
        f'"Shall I tell you a secret?" asked {{teacher.first}}. "You must {trick}. And then you must practice."',
    )
    tale.one_of(
        "So {h} practiced every day. On the first day, it went a little better. On the seventh day, {h.he} could"
        " {skill}!",
        "{h} went to {place}, where nobody could see {h.him}, and practiced, again and again. And one morning, all at"
        " once, it"
        " worked!",
        '{h} tried it that way, slowly. "I can do it!" {h.he} shouted. "Look, I can {skill}!"',
    )
    tale.paragraph()
    tale.one_of(
        "Not long after that, it was good for something.",
        "Soon it turned out to be useful.",
        "And one day it mattered.",
    )
    tale.say(f"{{h}} {use}.")
    tale.one_of(
        '"Who taught you that?" asked {f}. "{teacher} did," said {h}, "and a hundred mistakes."',
        '"Will you teach me?" asked {s.first}. "Of course," said {h}. "It is quite easy. You only have to fail a few'
        " times"
        ' first."',
        "{teacher} saw it, and {teacher.he} nodded proudly.",
    )
    close_tale(
        tale,
        "What is hard today, {h} thought, is easy tomorrow.",
        "And {h} began at once to learn something new.",
        "{h} still made mistakes, but {h.he} did not mind them anymore.",
    )


# the baby animal, its mother, where it belongs, the clue
_LITTLE_ONES = table("""
duckling / mother duck / among the reeds / its feet were wet
kitten / mother cat / in the hay barn / there was hay in its fur
lamb / mother sheep / on the green hill / there was a bit of clover in its wool
fawn / mother deer / in the birch wood / there was birch bark on its nose
owlet / mother owl / in the hollow tower / there was white dust on its wings
chick / mother hen / in the yard with the red gate / there was red paint on its tail
puppy / mother dog / at the mill / there was flour on its ears
seal pup / mother seal / on the flat rocks / there was salt on its whiskers
""")


def little_one_lost(tale: Tale) -> None:
    """A lost baby animal is found; asking leads to wrong mothers, a clue leads to the right one."""
    begin(tale, season=tale.pick(("spring", "summer")))
    at_sea = tale.scope["world"] == "seaside"
    baby, mother, where, clue = tale.pick([x for x in _LITTLE_ONES if (x[0] == "seal pup") <= at_sea])
    tale.let(baby=baby, mother=mother, where=where, clue=clue)
    tale.let(now=clue.replace(" was ", " is ").replace(" were ", " are "))
    open_tale(tale)
    tale.one_of(
        "{Day}, {h.first} heard somebody crying {place.at}. It was a little {baby}.",
        "{Day}, {h.first} found a little {baby} {place.at}. It was all alone.",
        "{Day}, something small and soft followed {h.first}. It was a {baby}!",
    )
    tale.one_of(
        '"Are you lost?" asked {h}. The {baby} looked up with big eyes.',
        '"I cannot find my mother," said the {baby}.',
        "{h} picked it up. It trembled, and {h.he} could feel its heart beat.",
    )
    keeps = tale.chance(0.35)
    if keeps:
        tale.one_of(
            '"I will keep you," said {h}. {h.He} made a soft bed for it. But the {baby} did not eat, and it cried all'
            " night."
            ' Then {h} understood. "You want to go home," {h.he} said.',
            '{h} would have liked to keep it forever. "Somebody is looking for it," said {m}, and {h} knew that it'
            " was true.",
        )
    tale.paragraph()
    if tale.chance(0.5):
        first, second = tale.sample(("goose", "goat", "cow", "pig", "old hare", "horse"), 2)
        tale.say(
            f'{{h}} asked the {first}. "That is not mine," said the {first}. {{h}} asked the {second}. "Mine are all'
            f' here," said'
            f" the {second}."
        )
    else:
        tale.one_of(
            "{h} asked {e.first}, but {e} had not seen any mother. {h} asked {f.first}, but {f} shook {f.his} head.",
            "{h} and {f.first} asked everyone they met. Nobody had lost a {baby}.",
        )
    tale.one_of(
        'Then {h} looked at the {baby} again and saw that {clue}. "I know where you live!" {h.he} said.',
        '"Look," said {f.first}, "{now}!" Now {h} knew where to go.',
    )
    tale.paragraph()
    tale.one_of(
        "{h} carried the {baby} to its home {where}. There the {mother} was running up and down, calling and calling.",
        "Very carefully, {h} took it back. And {where} there was the {mother}, who had been looking for it everywhere.",
    )
    tale.one_of(
        "The {baby} jumped out of {h}'s arms and ran to her. She licked it from its nose to its tail."
        if baby in ("kitten", "lamb", "fawn", "puppy")
        else "The {baby} jumped out of {h}'s arms, and they were together again.",
        '"My baby!" she cried. "How can I ever thank you?"',
    )
    tale.one_of(
        "{h} was a little sad, but much more glad.",
        '"Come and visit us," said the {mother}.',
        "{h} waved until they were out of sight.",
    )
    close_tale(
        tale,
        "And from then on, the {baby} came to say hello every morning.",
        "Everyone belongs somewhere, thought {h}, and {h.he} ran home to {m}.",
        "When the {baby} grew up, it still knew {h}'s voice.",
    )
